"Hook of mkdocs: the pages load nothing from elsewhere (the notebooks' template would fetch a drawing library that no notebook uses)."
import re


def on_post_page(output, page, config): return re.sub(r'<script type="module">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>', '', output, flags=re.S)
