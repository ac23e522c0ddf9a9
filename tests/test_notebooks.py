"Every notebook runs from top to bottom, and draws again each figure that it stores."
import json, sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbdev.test
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[!_.]*.ipynb'))


@pytest.fixture
def alone(monkeypatch):
    "What a notebook changes in the process is put back after it."
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setattr(sys, 'path', sys.path[:])
    for name in ('displayhook', 'excepthook'): monkeypatch.setattr(sys, name, getattr(sys, name))
    main, backend = sys.modules['__main__'], plt.get_backend()
    with plt.rc_context():
        yield
        plt.close('all')
    sys.modules['__main__'] = main
    plt.switch_backend(backend)
    InteractiveShell._instance = None


def pictures(cells):
    "How many pictures each cell gives, by the cell's id."
    return {c['id']: sum('image/png' in o.get('data', {}) for o in c['outputs'])
            for c in cells if c['cell_type'] == 'code'}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, alone, monkeypatch):
    runs = []
    class Kept(nbdev.test.NBProcessor):
        def __init__(self, *args, **kwargs):
            runs.append(self)
            super().__init__(*args, **kwargs)
    monkeypatch.setattr(nbdev.test, 'NBProcessor', Kept)
    flags = set(get_config().tst_flags.split()) - ({'gpu'} if torch.cuda.is_available() else set())
    passed, _ = nbdev.test.test_nb(path, skip_flags=flags, basepath=ROOT)
    assert passed, f'{path.name} failed: its traceback is in the captured standard error'
    stored = pictures(json.loads(path.read_text(encoding='utf-8'))['cells'])
    drawn = pictures(runs[0].nb.cells)
    assert {i: n for i, n in drawn.items() if n < stored[i]} == {}, f'run .ci/notebooks.py {path.name} again'
