"Fails when `nbdev-export` or `nbdev-clean` would change a file: modules and notebooks must agree, notebooks must be clean."
import hashlib
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def digests(folder, pattern):
    return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((root / folder).rglob(pattern))}


def changed_by(command, folder, pattern):
    before = digests(folder, pattern)
    subprocess.run([Path(sys.executable).parent / command], cwd=root, check=True)
    after = digests(folder, pattern)
    return sorted(str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p))


bad = {cmd: changed_by(cmd, *where) for cmd, where in
       {'nbdev-export': ('silkworm_app', '*.py'), 'nbdev-clean': ('nbs', '*.ipynb')}.items()}
for cmd, files in bad.items():
    print(f'{cmd}: ' + (f'changed {", ".join(files)}; run it and commit the result' if files else 'no difference'))
sys.exit(any(bad.values()))
