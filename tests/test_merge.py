"A prepared set grows by what a page collected: test and folds stay, copies of test photographs stay out, nothing comes in twice."
import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from silkworm_app.data.cli import main
from silkworm_app.data.folder import COLLECTED, MANIFEST
from silkworm_app.data.merge import merge
from silkworm_app.data.prepare import prepare, read_options
from silkworm_app.data.sample import draw_larva
from silkworm_app.data.splits import MANIFEST_COLUMNS, find_splits, read_manifest
from silkworm_app.files import sha256_of
from silkworm_app.serve.page.collect import ELSE, UNSURE, Store
from silkworm_app.train.pictures import learned_pictures


def rows_of(dest, split): return {(r['sha256'], r['class']) for r in read_manifest(dest) if r['split'] == split}


def drawn(root, classes, n, seed, suffix='png', size=96):
    for k, c in enumerate(classes):
        (root/c).mkdir(parents=True, exist_ok=True)
        for i in range(n): draw_larva(('healthy', 'pebrine')[k], size, seed + 100*k + i).save(root/c/f'{seed + i}.{suffix}', quality=95)
    return root


@pytest.fixture(autouse=True)
def remembered(tmp_path_factory, monkeypatch): monkeypatch.setenv('SILKWORM_CACHE', str(tmp_path_factory.getbasetemp()/'cache'))


@pytest.fixture
def collected(tmp_path):
    "What a page keeps: by class, beside it what is of no class, and a table"
    store, a = Store(tmp_path/'collected'), dict(kind='one', labels=['healthy'], probability=.9)
    for k, said in enumerate(('healthy', 'pebrine', 'healthy', 'pebrine', ELSE, UNSURE)):
        assert store.keep(draw_larva('pebrine' if k % 2 else 'healthy', 96, 700 + k), said, a).state == 'done'
    return tmp_path/'collected'


@pytest.mark.parametrize('folds', [0, 3])
def test_collected_photographs_come_in_and_what_is_judged_stays(tmp_path, collected, folds, capsys):
    old, new = tmp_path/'old', tmp_path/'new'
    prepare(drawn(tmp_path/'first', ('healthy', 'pebrine'), 6 if folds else 10, 0), old, folds=folds, show=False)
    known = read_manifest(old)
    kept = {s: next(r for r in known if r['split'] == s) for s in ({'test', 'train'} if not folds else {'fold_2'})}
    for r in kept.values():                                       # a person photographs the screen: turned, darker, saved again
        im = Image.open(old/r['path']).convert('RGB').transpose(Image.Transpose.ROTATE_90)
        ImageEnhance.Brightness(im).enhance(.8).save(collected/r['class']/f'again-{r["split"]}.jpg', quality=90)
    wrong = next(r for r in known if r['split'] in ('train', 'fold_1') and r['class'] == 'healthy')
    shutil.copy(old/wrong['path'], collected/'pebrine/wrong.png')
    before = {p: p.read_bytes() for p in [*old.rglob('*'), *collected.rglob('*')] if p.is_file()}
    assert main(['prepare', str(old), str(collected), str(new)]) == 0
    said = capsys.readouterr().out
    assert before == {p: p.read_bytes() for p in [*old.rglob('*'), *collected.rglob('*')] if p.is_file()}
    now = read_manifest(new)
    assert len({r['sha256'] for r in now}) == len(now) and {r['class'] for r in now} == {'healthy', 'pebrine'}
    for s in {r['split'] for r in known}:
        assert rows_of(old, s) == rows_of(new, s) if s == 'test' else rows_of(old, s) <= rows_of(new, s), s
    came = [r for r in now if r['source'].startswith('collected/')]
    turned = [r for r in came if 'again-' in r['source']]
    assert [r['split'] for r in turned] == (['fold_2'] if folds else ['train']) and len(came) == 5
    assert 'stands under healthy: look at it (collected/pebrine/wrong.png)' in said
    assert folds or 'by which models are compared (collected/' in said
    s = find_splits(new)
    assert s.leak['test_seen_in_train'] == 0 and not (new/'.something_else').exists()
    assert main(['prepare', str(new), str(collected), str(tmp_path/'third')]) == 0      # nothing comes in a second time
    assert f'note: 0 of {6 + (not folds)} picture(s) came in' in capsys.readouterr().out


def test_copies_that_come_in_are_told_from_photographs(tmp_path):
    "Six pictures that show one photograph are no six photographs; where each is new, nothing is said"
    prepare(drawn(tmp_path/'first', ('healthy', 'pebrine'), 6, 0), tmp_path/'old', folds=3, show=False)
    new = draw_larva('healthy', 96, 50)
    (tmp_path/'more/healthy').mkdir(parents=True)
    new.save(tmp_path/'more/healthy/new.png')
    said = lambda to: merge(tmp_path/'old', tmp_path/'more', tmp_path/to, show=False)['notes'][0]
    assert said('one') == '1 of 1 picture(s) came in, healthy 1'
    for k, im in enumerate((new, Image.open(tmp_path/'first/healthy/0.png'))): im.rotate(90).save(tmp_path/f'more/healthy/turned{k}.png')
    assert said('three') == '3 of 3 picture(s) came in, healthy 3; they show 1 photograph(s) that were not there, the others are copies'


def test_what_cannot_be_added_is_said(tmp_path, collected, capsys):
    raw = drawn(tmp_path/'first', ('healthy', 'pebrine'), 12, 0)
    prepare(raw, tmp_path/'old', folds=0, show=False)
    def said(*args):
        assert main(['prepare', *map(str, args)]) == 2
        return capsys.readouterr().err
    assert 'run silkworm-data prepare' in said(raw, collected, tmp_path/'x')
    assert '--folds says nothing' in said(tmp_path/'old', collected, tmp_path/'x', '--folds', '3')
    assert 'lie inside each other' in said(tmp_path/'old', collected, collected/'x')
    drawn(collected, ('moth', 'cocoon'), 1, 50)
    assert 'cocoon, which is no class of the set' in said(tmp_path/'old', collected, tmp_path/'x')
    (tmp_path/'m.yaml').write_text('moth: null\ncocoon: null\n')
    assert main(['prepare', str(tmp_path/'old'), str(collected), str(tmp_path/'y'), '--mapping', str(tmp_path/'m.yaml')]) == 0
    next((tmp_path/'old/train/healthy').iterdir()).unlink()
    assert 'lacks 1 picture(s) of its manifest' in said(tmp_path/'old', collected, tmp_path/'z') and not (tmp_path/'z').exists()


@pytest.fixture
def grown(tmp_path):
    "What happens to a set between two seasons: `change(rows, folder)` edits its manifest or its files, and two pictures come"
    prepare(drawn(tmp_path/'first', ('healthy', 'pebrine'), 12, 0), tmp_path/'old', folds=0, level='hash', show=False)
    drawn(tmp_path/'more', ('healthy', 'pebrine'), 1, 50)
    def grow(name, change, heads=MANIFEST_COLUMNS, between=',', encoding='utf-8-sig'):
        d = shutil.copytree(tmp_path/'old', tmp_path/name)
        rows = read_manifest(d)
        changed = change(rows, d)
        rows = changed if isinstance(changed, list) else rows
        text = io.StringIO(newline='')
        out = csv.DictWriter(text, heads, delimiter=between, restval='')
        out.writeheader()
        out.writerows(rows)
        (d/MANIFEST).write_bytes(text.getvalue().encode(encoding))
        return d, lambda: merge(d, tmp_path/'more', tmp_path/f'{name}_new', show=False)
    return grow


def of_train(rows, c): return next(r for r in rows if r['split'] == 'train' and r['class'] == c)


def test_a_manifest_that_a_person_worked_on_is_followed_and_that_is_said(tmp_path, grown):
    d, new = grown('class', lambda rows, d: of_train(rows, 'healthy').update({'class': 'pebrine'}))
    out, edited = new(), next(r for r in read_manifest(d) if r['path'].split('/')[1] != r['class'])
    assert f'1 picture(s) that were there are taken as manifest.csv says, not as their folders: {edited["path"]} is pebrine, train' in out['notes']
    assert {r['class'] for r in read_manifest(out['path']) if r['sha256'] == edited['sha256']} == {'pebrine'}
    assert any('1 file(s) are not where manifest.csv has them' in w for w in find_splits(d, group='hash').warnings)
    d, new = grown('excel', lambda rows, d: [*rows, {}, {}], [*MANIFEST_COLUMNS, 'looked at by'], ';')      # lines of empty cells
    assert sum(new()['added'].values()) == 2 and find_splits(d).leak['level'] == 'manifest'


@pytest.mark.parametrize('change,words', [
    (lambda rows, d: rows[5].update({'class': ''}), "'' cannot be the name of a class folder; correct the line of"),
    (lambda rows, d: rows[5].update({'class': '../../x'}), "'../../x' cannot be the name of a class folder"),
    (lambda rows, d: rows[5].update(split='trian'), "of the split 'trian', which is none of test, train, valid"),
    (lambda rows, d: rows + 4*rows[5:6], 'twice; keep one line'),
    (lambda rows, d: rows[5].update(group='1.5'), 'is not as silkworm-data wrote it: put that one back'),
    (lambda rows, d: shutil.move(d/rows[5]['path'], d), 'or delete their lines in manifest.csv; where a class was wrong, correct it there')])
def test_a_slip_in_a_manifest_is_told_by_its_line(tmp_path, grown, change, words):
    "And nothing is written, inside the new set or beside it"
    d, new = grown('old_', change)
    there = sorted(tmp_path.rglob('*'))
    with pytest.raises(ValueError, match=re.escape(words)): new()
    assert sorted(tmp_path.rglob('*')) == there


def test_what_was_done_to_the_files_of_a_set_is_said(tmp_path, grown):
    "Put in, turned where it lies, one photograph under two classes, the data card gone: each would change the new set in silence"
    def change(rows, d):
        draw_larva('healthy', 96, 900).save(d/'train/healthy/mine.png')
        turned, one, two = (next(r for r in rows if r['split'] == s and r['class'] == c) for s, c in (('test', 'healthy'), ('train', 'healthy'), ('train', 'pebrine')))
        Image.open(d/turned['path']).rotate(90).save(d/turned['path'])
        shutil.copy(d/one['path'], d/two['path'])
        (d/'README.md').unlink()
    notes = '\n'.join(grown('set', change)[1]()['notes'])
    for words in ('1 file(s) of set stay out, for its manifest.csv does not list them: train/healthy/mine.png',
                  '2 picture(s) that were there have been changed since', '1 photograph(s) that were there stand under two or more classes',
                  'the data card of set does not say how it was made'): assert words in notes, notes


@pytest.mark.parametrize('size', [None, 64])
def test_pictures_that_say_where_they_were_taken_are_counted(tmp_path, size):
    raw = drawn(tmp_path/'first', ('healthy', 'pebrine'), 12, 0, 'jpg')
    exif = Image.Exif()
    exif[0x8825] = {1: 'N', 2: (48., 8., 1.), 3: 'E', 4: (11., 30., 2.)}
    Image.open(raw/'healthy/0.jpg').save(raw/'healthy/0.jpg', exif=exif)
    out = prepare(raw, tmp_path/'old', folds=0, level='hash', size=size, show=False)
    Image.open(raw/'healthy/0.jpg').rotate(90).save(drawn(tmp_path/'more', ('healthy', 'pebrine'), 1, 50)/'healthy/gps.jpg', exif=exif)
    said = [[n for n in o['notes'] if '(GPS)' in n] for o in (out, merge(tmp_path/'old', tmp_path/'more', tmp_path/'new', show=False))]
    assert [int(n[0].split()[0]) if n else 0 for n in said] == ([0, 0] if size else [1, 2])
    assert size or said[0][0] in (tmp_path/'old/README.md').read_text()


def test_a_class_whose_name_is_no_folder_is_known_by_the_table(tmp_path):
    prepare(drawn(tmp_path/'first', ('a&b', 'c'), 12, 0), tmp_path/'old', folds=0, show=False)
    Store(tmp_path/'collected').keep(draw_larva('healthy', 96, 900), 'a&b', dict(kind='one', labels=['c'], probability=.9))
    table = tmp_path/'collected'/COLLECTED
    assert table.is_file() and merge(tmp_path/'old', tmp_path/'collected', tmp_path/'new', show=False)['added'] == {'a&b': 1}
    (tmp_path/'collected/a&b').rename(tmp_path/'collected/a_b')      # as a page on Windows once wrote it
    table.write_bytes(table.read_bytes().replace(b'a&b/', b'a_b\\'))
    assert merge(tmp_path/'old', tmp_path/'collected', tmp_path/'same', show=False)['added'] == {'a&b': 1}


def test_two_classes_whose_names_are_alike_stay_two(tmp_path, capsys):
    "A page gives each a folder; a table that says two classes of one is refused"
    from silkworm_app.data.merge import merge
    names, a = ('काला', 'कीला'), dict(kind='one', labels=['c'], probability=.9)
    prepare(drawn(tmp_path/'first', names, 12, 0), tmp_path/'old', folds=0, show=False)
    collected = tmp_path/'collected'
    for k in range(6): Store(collected).keep(draw_larva(('healthy', 'pebrine')[k % 2], 96, 900 + k), names[k % 2], a)
    added = {names[0]: 3, names[1]: 3}
    assert merge(tmp_path/'old', collected, tmp_path/'new', show=False)['added'] == added
    (collected/'क_ल_').mkdir()
    for f in collected.rglob('*.jpg'): f.rename(collected/'क_ल_'/f.name)
    table = (collected/COLLECTED).read_text(encoding='utf-8-sig')
    for n in names: table = table.replace(f'\n{n}/', '\nक_ल_/')
    (collected/COLLECTED).write_text(table, encoding='utf-8-sig')
    assert main(['prepare', *map(str, (tmp_path/'old', collected, tmp_path/'no'))]) == 2
    assert 'says that the folder क_ल_ is of two classes (काला, कीला)' in capsys.readouterr().err
    (collected/names[1]).mkdir(exist_ok=True)                       # as it says: the pictures of one go elsewhere
    for r in csv.DictReader(table.lstrip('\ufeff').splitlines()):
        if r['said'] == names[1]: (collected/r['file']).rename(collected/names[1]/Path(r['file']).name)
    assert merge(tmp_path/'old', collected, tmp_path/'mended', show=False)['added'] == added


def run(*options):
    from silkworm_app.cli import train_main
    base = '--epochs 1 --batch_size 16 --log_dir none --progress false --device cpu --num_workers 0 --onnx false --pretrained false --model vanillanet_5_x0_125'.split()
    return train_main([*map(str, options), *base])


def test_a_set_grows_as_it_was_prepared(tmp_path, collected, capsys):
    "What counts as a copy and whether scenes stay together is not asked again; what is wrong with the mapping or the page's table is said"
    old = tmp_path/'old'
    prepare(drawn(tmp_path/'first', ('healthy', 'pebrine'), 10, 0), old, folds=0, level='hash', scenes='apart', show=False)
    assert main(['prepare', str(old), str(collected), str(tmp_path/'new')]) == 0
    assert {k: read_options(tmp_path/'new')[k] for k in ('level', 'scenes')} == dict(level='hash', scenes='apart')
    (tmp_path/'names.json').write_text('{"helthy": "healthy"}')
    capsys.readouterr()
    assert main(['prepare', str(old), str(collected), str(tmp_path/'no'), '--mapping', str(tmp_path/'names.json')]) == 2
    assert "'helthy'" in capsys.readouterr().err
    (collected/'other.csv').write_text('"never closed' + 200_000*'x')    # a person's table is not read
    assert main(['prepare', str(old), str(collected), str(tmp_path/'two')]) == 0
    (collected/COLLECTED).write_text('file,said\n"never closed' + 200_000*'x')
    assert main(['prepare', str(old), str(collected), str(tmp_path/'no')]) == 2 and COLLECTED in capsys.readouterr().err


def test_what_comes_to_a_reduced_set_is_reduced(tmp_path):
    "And what was there keeps its bytes"
    prepare(drawn(tmp_path/'first', ('healthy', 'pebrine'), 10, 0), tmp_path/'old', folds=0, level='hash', size=64, show=False)
    drawn(tmp_path/'more', ('healthy', 'pebrine'), 3, 50)
    assert main(['prepare', str(tmp_path/'old'), str(tmp_path/'more'), str(tmp_path/'new')]) == 0
    was, now = ({r['sha256']: Image.open(d/r['path']).size for r in read_manifest(d)} for d in (tmp_path/'old', tmp_path/'new'))
    assert was.items() < now.items() and set(now.values()) == {(64, 64)} and read_options(tmp_path/'new')['size'] == 64
    with pytest.raises(ValueError, match='seed must lie in 0 to'): merge(tmp_path/'old', tmp_path/'more', tmp_path/'no', seed=-1)


def test_of_near_copies_that_come_the_largest_stays(tmp_path):
    prepare(drawn(tmp_path/'first', ('healthy', 'pebrine'), 10, 0), tmp_path/'old', folds=0, level='hash', show=False)
    for p in drawn(tmp_path/'more', ('healthy', 'pebrine'), 1, 50).rglob('*.png'): Image.open(p).resize((40, 40)).save(p.with_name('0.png'))
    merge(tmp_path/'old', tmp_path/'more', tmp_path/'new', show=False)
    assert {r['source'] for r in read_manifest(tmp_path/'new')} >= {'more/healthy/50.png', 'more/pebrine/50.png'}


def test_a_run_says_whether_it_became_better(tmp_path, capsys):
    "Beside the run that learned from the earlier set, without being told; against a named one; from a cross-validation, with the page of doubtful labels"
    first, more = (drawn(tmp_path/n, ('healthy', 'pebrine'), k, s, size=32) for n, k, s in (('first', 10, 0), ('more', 4, 50)))
    prepare(first, tmp_path/'old', folds=0, level='hash', show=False)
    merge(tmp_path/'old', more, tmp_path/'new', level='hash', show=False)
    assert run('--data_path', tmp_path/'new', '--output_dir', tmp_path/'alone/new', '--bundle', 'false') == 0
    assert 'name the run that learned from old with --better_than' in capsys.readouterr().out
    assert run('--data_path', tmp_path/'old', '--output_dir', tmp_path/'runs/old', '--bundle', 'false') == 0
    assert run('--data_path', tmp_path/'new', '--output_dir', tmp_path/'runs/new') == 0
    n = len(rows_of(tmp_path/'old', 'test'))
    out, card = capsys.readouterr().out, (tmp_path/'runs/new/bundle/card.md').read_text()
    for text in (out, card): assert f'than old, on the same {n} photographs, which neither had learned from' in text, out
    for c in ('healthy', 'pebrine'):                               # a start that learned from one test picture of each class
        (tmp_path/'seen/train'/c).mkdir(parents=True)
        for f in [*sorted((tmp_path/'old/test'/c).iterdir())[:1], *sorted((tmp_path/'old/train'/c).iterdir())]: shutil.copy(f, tmp_path/'seen/train'/c)
    shutil.copytree(tmp_path/'old/valid', tmp_path/'seen/valid')
    assert run('--data_path', tmp_path/'seen', '--output_dir', tmp_path/'start', '--bundle', 'false') == 0
    for dest, start in (('second', 'start'), ('third', 'second')): # what the start of a start has learned, too
        capsys.readouterr()
        assert run('--data_path', tmp_path/'new', '--output_dir', tmp_path/dest, '--finetune', tmp_path/start, '--better_than', tmp_path/'runs/old', '--bundle', 'false') == 0
        out = capsys.readouterr().out
        assert f'on the same {n - 2} photographs, which neither had learned from' in out and f'{start} were trained on 2 of the' in out, out
    shutil.rmtree(tmp_path/'start')
    assert learned_pictures(tmp_path/'third', [*(tmp_path/'seen/train').rglob('*.png')]) == len([*(tmp_path/'seen/train').rglob('*.png')])
    one = first/'healthy/0.png'
    shutil.copy(one, first/'pebrine/same.png')                     # one photograph under two classes
    assert run('--data_path', first, '--output_dir', tmp_path/'x', '--cross_validate', 2, '--group', 'hash', '--better_than',
               tmp_path/'runs/old', '--bundle', 'false') == 0
    out, page = capsys.readouterr().out, (tmp_path/'x/label_trouble.html').read_text()
    assert 'than old, on the same ' in out and 'look like another class than their label says' in out
    assert 'Under two classes' in page and 'pebrine/same.png: pebrine' in page and f'healthy/{one.name}: healthy' in page
    table = list(csv.DictReader((tmp_path/'x/label_trouble.csv').open(encoding='utf-8-sig')))
    assert all((first/r['file']).is_file() and r['label'] != r['looks like'] for r in table)
    assert [(r['file'], r['looks like']) for r in table[-2:]] == [(f'healthy/{one.name}', 'pebrine'), ('pebrine/same.png', 'healthy')]
    assert f'healthy/{one.name} (healthy), pebrine/same.png (pebrine)' in out
    assert run('--data_path', first, '--output_dir', tmp_path/'y', '--better_than', tmp_path/'nothing') == 2


@pytest.mark.parametrize('part', ['', 'pictures', 'fold_1'])
def test_doubtful_labels_of_a_prepared_set_have_the_names_of_before(tmp_path, part):
    from silkworm_app.train.cross import content_key, photographs_of, whole_split
    from silkworm_app.train.run import RunFolder
    from silkworm_app.train.trouble import write_trouble
    prepare(drawn(tmp_path/'first', ('healthy', 'pebrine'), 4, 0), tmp_path/'set', folds=2, level='hash', show=False)
    splits, run = whole_split(find_splits(tmp_path/'set'/part), .2, 0), RunFolder(tmp_path/'run')
    run.path.mkdir()
    files = photographs_of(splits)
    y = [c == 'pebrine' for _, c, _ in files]
    p = [1 - .9*k if i % 4 == 0 else .9*k for i, k in enumerate(y)]              # of each class the first is told wrongly
    record = dict(by='photo', part=0, file=[content_key(f) for f, *_ in files], photo=[g for *_, g in files], target=list(map(int, y)), probs=[[1 - v, v] for v in p])
    run.cross.write_text(json.dumps(record) + '\n')
    said, page = '\n'.join(write_trouble(run, splits)), run.trouble_page.read_text()
    table = list(csv.DictReader(run.trouble.open(encoding='utf-8-sig')))
    was = {r['sha256']: r['source'] for r in read_manifest(tmp_path/'set')}
    assert len(table) == 2 and all(r['source'] in page and r['source'] in said and r['file'] not in page for r in table), (said, table)
    assert all(was[sha256_of(splits.path/r['file'])] == r['source'] for r in table) and 'set was prepared from first' in said and 'set was prepared from first' in page
