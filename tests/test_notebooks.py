"Every notebook runs from top to bottom, and draws again each figure that it stores, in letters that can be read."
import io, json, struct, sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbdev.test
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.text import Text
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


@pytest.fixture
def small(monkeypatch):
    "What a notebook writes into the figures that it shows in less than 9 px, on a page that is 700 px wide."
    found, written = set(), []
    draw, show = Text.draw, FigureCanvasBase.print_figure
    def drawn(text, renderer):
        if text.get_visible() and text.get_text().strip():
            written.append((text.get_text(), renderer.points_to_pixels(text.get_fontsize())))
        return draw(text, renderer)
    def shown(canvas, file, *args, **kwargs):
        written.clear()
        done = show(canvas, file, *args, **kwargs)
        if isinstance(file, io.BytesIO) and file.getvalue()[1:4] == b'PNG':
            width, = struct.unpack('>I', file.getvalue()[16:20])
            found.update(text for text, pixels in written if pixels * min(1, 700 / width) < 9)
        return done
    monkeypatch.setattr(Text, 'draw', drawn)
    monkeypatch.setattr(FigureCanvasBase, 'print_figure', shown)
    return found


def pictures(cells):
    "How many pictures each cell gives, by the cell's id."
    return {c['id']: sum('image/png' in o.get('data', {}) for o in c['outputs'])
            for c in cells if c['cell_type'] == 'code'}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, alone, small, monkeypatch):
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
    assert small == set(), 'these letters are smaller than 9 px where a page is 700 px wide'


def test_small_letters_are_seen(small):
    def shown(size, width):
        fig = plt.figure(figsize=(width, 1), dpi=100)
        fig.text(.1, .5, f'{size} in {width}', fontsize=size)
        fig.canvas.print_figure(io.BytesIO())
        plt.close(fig)
    for size, width in ((6, 7), (7, 7), (10, 7), (10, 14)): shown(size, width)
    assert small == {'6 in 7', '10 in 14'}
