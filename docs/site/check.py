"The built site loads nothing from elsewhere, and every picture, style and page that it names is there: the end of `make docs`."
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

site = Path(__file__).resolve().parents[2]/'_site'
ASSET = re.compile(r'<(?:script|img|iframe|source|video)\b[^>]*?\bsrc="([^"]+)"|<link\b(?=[^>]*\brel="(?:stylesheet|icon|preload|preconnect|modulepreload)")[^>]*?\bhref="([^"]+)"', re.S)
PAGE = re.compile(r'<a\b[^>]*?\bhref="([^"]+)"', re.S)
OUTSIDE = re.compile(r'^(https?:)?//')


def there(page, link):
    "Does the file or page behind a relative link exist?"
    path = unquote(urldefrag(link)[0].split('?')[0])
    if not path: return True
    at = site/path.lstrip('/') if path.startswith('/') else page.parent/path
    return at.is_file() or (at/'index.html').is_file()


def faults(page):
    text = page.read_text(encoding='utf-8')
    local = lambda o: not re.match(r'[a-z]+:', o)
    for o in (a or b for a, b in ASSET.findall(text)):
        if OUTSIDE.match(o): yield f'loads {o} from elsewhere'
        elif local(o) and not there(page, o): yield f'names {o}, which is not there'
    for o in re.findall(r'@import\s+(?:url\()?["\']?((?:https?:)?//[^"\')\s]+)', text): yield f'loads {o} from elsewhere'
    if page.name != '404.html': yield from (f'links to {o}, which is not there' for o in PAGE.findall(text) if local(o) and not OUTSIDE.match(o) and not there(page, o))


pages = sorted(p for p in site.rglob('*.html') if p.is_file())
bad = [f'{p.relative_to(site)} {why}' for p in pages for why in dict.fromkeys(faults(p))]
print(*bad[:50], f'{len(pages)} pages, {len(bad)} faults', sep='\n')
sys.exit(bool(bad) or not pages)
