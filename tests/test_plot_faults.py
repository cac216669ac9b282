"silkworm-plot: a net without LSLUs, a run of the head alone, and broken files of a run."
import json

import pytest

from silkworm_app.figures import loss_curves
from silkworm_app.plot import main, plot_run

HISTORY = 'epoch,train_loss,valid_loss,accuracy\n0,1.2,1.1,0.5\n1,0.8,0.9,0.7\n'


@pytest.fixture
def run(tmp_path):
    "The folder of a training by epochs, of a net without LSLUs"
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'settings.yaml').write_text('act: relu\n')
    (run / 'history.csv').write_text(HISTORY)
    (run / 'learnable_params.jsonl').write_text('{"epoch": 1, "params": {}}\n{"epoch": 2, "params": {}}\n')
    (run / 'metrics.json').write_text(json.dumps(dict(test=dict(classes=['a', 'b'], confusion_matrix=[[3, 1], [1, 3]], per_class_recall=dict(a=.75, b=.75)))))
    return run


def said(capsys, *argv):
    "The one sentence of a command that can do nothing"
    assert main([*map(str, argv)]) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_net_without_lslus_gets_its_other_figures(run):
    assert {f.stem for f in plot_run(run, other=run)} == {'learning_curves', 'confusion_matrix', 'compare_with_run'}


def test_a_run_of_the_head_alone_is_compared(run, tmp_path, capsys):
    "It has no epochs, but found its classes as others did"
    head = tmp_path / 'head'
    head.mkdir()
    for f in ('settings.yaml', 'metrics.json'): (head / f).write_bytes((run / f).read_bytes())
    for a, b in ((run, head), (head, run), (head, head)): assert f'compare_with_{b.name}' in {f.stem for f in plot_run(a, other=b)}
    with pytest.raises(ValueError, match='trained by the head alone'): loss_curves(head)
    (head / 'metrics.json').unlink()
    assert 'is not finished' in said(capsys, run, head)
    (head / 'settings.yaml').unlink()
    assert 'must be the output folder of silkworm-train' in said(capsys, run, head)


@pytest.mark.parametrize('text', ['epoch,train_loss\na,b\n', 'epoch,train_loss\na,b,c\n'])
def test_a_history_without_numbers_is_told(run, capsys, text):
    (run / 'history.csv').write_text(text)
    assert f'{run / "history.csv"} holds no column of numbers' in said(capsys, run)


@pytest.mark.parametrize('metrics, field', [(dict(test=dict(classes=['a'])), 'no list confusion_matrix'), (dict(test=dict(confusion_matrix=[[1]])), 'no list classes'), ({}, 'the metrics of no split')])
def test_metrics_without_a_field_name_file_and_field(run, capsys, metrics, field):
    (run / 'metrics.json').write_text(json.dumps(metrics))
    line = said(capsys, run)
    assert str(run / 'metrics.json') in line and f'holds {field}' in line


def test_a_fault_of_the_program_is_no_sentence(run, monkeypatch):
    "A missing key is nothing that a person can mend"
    monkeypatch.setattr('silkworm_app.plot.plot_run', lambda *args: {}['x'])
    with pytest.raises(KeyError): main([str(run)])
