"What the manual names is there: options, names to import; and the code of docs/own_code.md runs."
import argparse
import configparser
import contextlib
import importlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
pages = {p.name: p.read_text(encoding='utf-8') for p in [root/'README.md', *sorted((root/'docs').glob('*.md'))]}
cfg = configparser.ConfigParser(delimiters=['='])
cfg.read(root/'settings.ini', encoding='utf-8')
entries = dict(o.split('=') for o in cfg['DEFAULT']['console_scripts'].split())
option = re.compile(r'(?<![\w-])--[a-z][\w-]*')


def says(main, *args):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit): main([*args])
    return out.getvalue()


@cache
def options(command):
    "Every option that a command knows, those of its parts among them."
    module, func = entries[command].split(':')
    main = getattr(importlib.import_module(module), func)
    text = says(main, '--help') + (says(main, '--help-all') if command == 'silkworm-train' else '')
    parts = re.search(r'^usage: silkworm-data \[-h\] \{?([\w,|-]+)', text) if command == 'silkworm-data' else None
    return set(option.findall(text + ''.join(says(main, o, '--help') for o in (re.split(r'[,|]', parts.group(1)) if parts else ()))))


def app_options():
    from silkworm_app.serve.page import export, server
    return set(option.findall(says(server.main, '--help') + says(export.main, '--help')))


@pytest.mark.parametrize('command', [*entries, 'silkworm-app export-web', *(f'silkworm-data {o}' for o in ('audit', 'prepare', 'crop', 'cifar10', 'cifar100'))])
def test_every_option_is_explained_with_its_default(command, monkeypatch):
    "Those of silkworm-train come from its settings; what is off has no default to tell"
    found, parse = [], argparse.ArgumentParser.parse_known_args
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_known_args', lambda self, *args: found.append(self) or parse(self, *args))
    if command == 'silkworm-train':
        from silkworm_app.train.config import make_parser
        found.append(make_parser(True))
    else:
        name, *part = command.split()
        module, func = entries[name].split(':')
        says(getattr(importlib.import_module(module), func), *part, '--help')
    for a in found[-1]._actions:
        text, name = ' '.join((a.help or '').split()), f'{command} {"/".join(a.option_strings) or a.dest}'
        assert text, f'{name} says nothing'
        assert not a.default or a.default == argparse.SUPPRESS or 'default' in text, f'{name} does not say its default, {a.default}'


def commands(text):
    "Each command with options, in a line of its own or between back-ticks."
    text = text.replace('\\\n', ' ')
    return [o for o in re.findall(r'^[ \t]*(?:\.venv/bin/)?((?:silkworm-\w+|python \S+\.py|torchrun|accelerate)[^\n]*)', text, re.M) + re.findall(r'`((?:silkworm-\w+|python \S+\.py) [^`]*)`', text) if '--' in o]


@pytest.mark.parametrize('page', sorted(pages))
def test_every_command_takes_the_options_that_are_named(page):
    for line in commands(pages[page]):
        line = line.split('#')[0]
        first = line.split()[0]
        if first in entries: known = options(first)
        elif first == 'python':
            file = line.split()[1]
            known = app_options() if file == 'app.py' else set(option.findall((root/file).read_text(encoding='utf-8')))
            if ' -- ' in line: line = line.split(' -- ')[0]
        else: known, line = options('silkworm-train'), line.split('silkworm_app.train', 1)[-1]
        assert set(option.findall(line)) <= known, (line, set(option.findall(line)) - known)


def test_every_option_in_the_text_is_some_commands():
    known = set().union(app_options(), *map(options, entries)) | {'--nproc_per_node', '--nnodes', '--rdzv-backend', '--rdzv-endpoint', '--rdzv-id', '--multi_gpu', '--num_processes',
        '--bind', '--directory'}        # torchrun's, accelerate's, http.server's
    known |= {o for f in [*(root/'experiments').glob('*.py'), *(root/'data_prep').glob('*.py')] for o in option.findall(f.read_text(encoding='utf-8'))}
    assert {(page, o) for page, text in pages.items() for o in option.findall(text)} <= {(page, o) for page in pages for o in known}


@pytest.mark.parametrize('page', sorted(pages))
def test_every_name_to_import_is_there(page):
    for block in re.findall(r'```python\n(.*?)```', pages[page], re.S):
        compile(block, page, 'exec')
        for module, names in re.findall(r'^from (silkworm_app[\w.]*) import ([\w, ]+)', block, re.M):
            for name in names.split(','): assert hasattr(importlib.import_module(module), name.strip()), (page, module, name)


def test_the_series_do_not_decay_in_a_loop_of_one_s_own():
    import timm
    import torch
    from silkworm_app.act.patch import patch_lslu
    net, _ = patch_lslu(timm.create_model('test_resnet', num_classes=3), act_num=1, per_channel=True, input_size=64)
    block = next(o for o in re.findall(r'```python\n(.*?)```', pages['own_code.md'], re.S) if 'param_groups_weight_decay' in o)
    exec(block, names := dict(net=net, torch=torch))
    decay = {id(p): g['weight_decay'] for g in names['opt'].param_groups for p in g['params']}
    series = [n for n, _ in net.named_parameters() if n.endswith(('alphas', 'biases'))]
    assert series and {n for n, p in net.named_parameters() if decay[id(p)]} == {n for n, p in net.named_parameters() if p.ndim > 1} - {*series}


def test_own_code_runs(tmp_path, monkeypatch, capsys):
    "As it stands, but smaller and without the network: fewer pixels, fewer epochs, a resnet from nothing."
    from silkworm_app.data.sample import draw_sample
    draw_sample(tmp_path/'pictures', n_per_class=10, size=96)
    code = '\n'.join(re.findall(r'```python\n(.*?)```', pages['own_code.md'], re.S))
    for was, now in (('metrics=accuracy)', 'metrics=accuracy, pretrained=False)'), ('fine_tune(3)', 'fine_tune(0)'), ('size=224', 'size=64'), ('size=288', 'size=96'), ('224, 224', '64, 64')):
        assert was in code, was
        code = code.replace(was, now)
    monkeypatch.chdir(tmp_path)
    exec(code + '\nassert fused', {})
    assert '17 activations become LSLUs' in capsys.readouterr().out and (tmp_path/'my_bundle').is_dir()
