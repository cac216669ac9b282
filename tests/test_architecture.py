"The house keeps its order: rooms import only from rooms above, without circles and without each other's private names; lines and modules stay short."
import ast
import json
import re
import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
package = root / 'silkworm_app'
ABOVE = dict(files=set(), clock=set(), act=set(), data=set(), serve={'act', 'data'}, train={'act', 'data', 'serve'})
for room in set(ABOVE) - {'files', 'clock'}: ABOVE[room] |= {'files', 'clock'}
ABOVE['figures'] = {'files', 'clock', 'act', 'data', 'serve', 'train'}
ABOVE['plot'] = ABOVE['figures'] | {'figures'}
ABOVE['cli'] = ABOVE['plot'] | {'plot'}
ABOVE['lab'] = ABOVE['cli'] | {'cli'}
ABOVE['all'] = set(ABOVE)


def module_name(path): return '.'.join(path.relative_to(root).with_suffix('').parts).removesuffix('.__init__')


modules = {module_name(p): p for p in sorted(package.rglob('*.py')) if p.name != '_modidx.py'}


def imports(path):
    "Own modules that a file imports, also inside functions, and the names taken from them: (line, module, names, whether inside a function)"
    name, tree = module_name(path), ast.parse(path.read_text(encoding='utf-8'))
    parts = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules: yield node.lineno, alias.name, [], id(node) not in top
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(parts[:len(parts) - node.level + 1]) if node.level else ''
            target = '.'.join(filter(None, [base, node.module or '']))
            if target.split('.')[0] != 'silkworm_app': continue
            taken = [a.name for a in node.names]
            sub = [f'{target}.{n}' for n in taken if f'{target}.{n}' in modules]
            for m in sub: yield node.lineno, m, [], id(node) not in top
            rest = [n for n in taken if f'{target}.{n}' not in modules]
            if rest and target in modules: yield node.lineno, target, rest, id(node) not in top


def room_of(module):
    "The room of a module; what `python -m` runs in a room is an entry like those of `cli`"
    parts = module.split('.')
    return 'cli' if parts[-1] == '__main__' else parts[1] if len(parts) > 1 else ''


edges = [(m, *found) for m, p in modules.items() for found in imports(p)]


def test_the_rooms_are_all_known():
    assert {room_of(m) for m in modules} - {''} == set(ABOVE)


def test_a_module_imports_only_from_rooms_above():
    wrong = [f'{m}:{line} imports {target}' for m, line, target, _, _ in edges
             if room_of(target) and room_of(m) != room_of(target) and room_of(target) not in ABOVE.get(room_of(m), ())]
    assert not wrong, '\n'.join(wrong)


def test_there_is_no_circle():
    graph = {m: {target for a, _, target, _, _ in edges if a == m and target != m} for m in modules}
    try: list(TopologicalSorter(graph).static_order())
    except CycleError as e: pytest.fail(f'circle of imports: {" <- ".join(e.args[1])}')


def test_no_private_name_is_taken_from_another_module():
    wrong = [f'{m}:{line} takes {n} from {target}' for m, line, target, names, _ in edges for n in names
             if n.startswith('_') and not n.startswith('__')]
    assert not wrong, '\n'.join(wrong)


def test_no_import_takes_the_place_of_another():
    "Two constants of one name, from two modules: the second is used for both, without a word."
    wrong = []
    for m, p in modules.items():
        names = [a.asname or a.name for n in ast.parse(p.read_text(encoding='utf-8')).body if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names]
        wrong += [f'{m} imports {n} twice' for n in sorted(set(names)) if names.count(n) > 1]
    assert not wrong, '\n'.join(wrong)


def test_an_import_inside_a_function_has_its_reason():
    "A comment on the line, or on the one above: to keep torch out of the serving path, or a package optional."
    wrong = []
    for m, line, target, _, inner in edges:
        if not inner: continue
        lines = modules[m].read_text(encoding='utf-8').splitlines()
        if '#' not in lines[line - 1] and not lines[line - 2].lstrip().startswith('#'): wrong.append(f'{m}:{line} imports {target}')
    assert not wrong, '\n'.join(wrong)


def test_lines_and_modules_are_short():
    long = [f'{m}:{i}' for m, p in modules.items() for i, o in enumerate(p.read_text(encoding='utf-8').splitlines(), 1) if len(o) > 140]
    big = [f'{m}: {n} lines' for m, p in modules.items() if (n := len(p.read_text(encoding='utf-8').splitlines())) > 400]
    assert not long and not big, '\n'.join(long + big)


def test_exported_cells_are_short():
    sizes = []
    for p in (root / 'nbs').rglob('*.ipynb'):
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            source = ''.join(c['source'])
            if c['cell_type'] == 'code' and '#| export' in source: sizes.append(len(source.strip().splitlines()) - 1)
    assert statistics.median(sizes) < 20 and statistics.quantiles(sizes, n=20)[-1] < 45 and max(sizes) <= 160


def test_there_is_one_notebook_a_module():
    generated = [m for m, p in modules.items() if 'AUTOGENERATED' in p.read_text(encoding='utf-8')[:400]]
    exported = []
    for p in (root / 'nbs').rglob('*.ipynb'):
        for c in json.loads(p.read_text(encoding='utf-8'))['cells']:
            exported += [o.split()[-1] for o in ''.join(c['source']).splitlines() if o.startswith('#| default_exp')]
    assert sorted(f'silkworm_app.{o}' for o in exported) == sorted(generated) and len(set(exported)) == len(exported)


def test_notebooks_of_a_room_are_numbered_in_one_order():
    for folder in {p.parent for p in (root / 'nbs').rglob('*.ipynb')}:
        numbers = [p.name.split('_')[0] for p in folder.glob('*.ipynb')]
        assert len(set(numbers)) == len(numbers), sorted(numbers)


def test_a_notebook_comes_after_those_that_it_imports():
    "But for lslu, which is read first: what makes it fast comes behind it."
    place = {}
    for p in (root / 'nbs').rglob('*.ipynb'):
        found = re.search(r'#\| default_exp ([\w.]+)', p.read_text(encoding='utf-8'))
        if found: place[f'silkworm_app.{found[1]}'] = p.parent.name, p.name
    wrong = [f'{a[1]} imports {b[1]}' for m, _, target, _, _ in edges if (a := place.get(m)) and (b := place.get(target))
             and a[0] == b[0] and a[1] < b[1] and (m, target) != ('silkworm_app.act.lslu', 'silkworm_app.act.fast')]
    assert not wrong, '\n'.join(wrong)
