"The explorer without a browser: what it keeps, what it draws for films and models of many makes, and what it refuses."
import json, subprocess, sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from clips import noise, save
from ppqg_nb.core import BINARY_CLASSES, Config
from ppqg_nb.explorer import DRAWINGS, OWN, SILENCE, Explorer, Glance, Stages, frame_point, to_png
from ppqg_nb.segmenter import Segmenter
from ppqg_nb.vct import VCT
from ppqg_nb.video import MediaError, read_frames
from ppqg_nb.workshop import app


def tiny(**changes):
    "A small model of two classes, its weights random."
    config = dict(classes=BINARY_CLASSES, sounds=BINARY_CLASSES, image_size=64, hidden=16, num_queries=4, pixel_mlp=(8,),
                  layers=3, heads=2, ffn=16, vggish_width=.05, backbone='resnet10t',
                  backbone_options=dict(output_stride=32), prompt_heads=1)
    return VCT(Config(**config | changes)).eval()


def film(path, size=(48, 64), seconds=3, **options):
    times = np.arange(10*seconds)/10
    images = [np.full((*size, 3), 20 + int(60*t), np.uint8) for t in times]
    return save(path, times=times, images=images, wave=noise()[:, :44100*seconds], fps=10, **options)


@pytest.fixture
def stages(tmp_path):
    return Stages(Segmenter(tiny()), film(tmp_path/'a.mp4'), [film(tmp_path/'short.mp4', seconds=1)])


def test_looks_are_those_of_the_segmenter(stages, tmp_path):
    "For a part of a film too."
    whole = list(Segmenter(stages.model).stream(tmp_path/'a.mp4', fps=4))
    part = Stages(Segmenter(stages.model), tmp_path/'a.mp4', fps=4, start=1, seconds=1)
    steps = [s for s in whole if 1 <= s.time < 2]
    assert part.times == [s.time for s in steps] and len(steps) == 4
    for i, step in enumerate(steps):
        ours = part.heard(i, OWN).step
        assert torch.equal(ours.frame, step.frame) and torch.allclose(ours.maps, step.maps, atol=1e-5)
        assert torch.equal(ours.labels, step.labels)


def test_a_shorter_sound_ends_in_silence(stages, tmp_path):
    short = str(tmp_path/'short.mp4')
    last = len(stages.times) - 1
    assert torch.equal(stages.mel_patch(last, short), stages.mel_patch(last, SILENCE))
    assert not torch.equal(stages.mel_patch(1, short), stages.mel_patch(1, SILENCE))


def test_nothing_is_computed_twice(stages):
    calls = []
    hook = stages.model.pyramid.register_forward_hook(lambda *_: calls.append(1))
    window = Explorer(stages)
    for window.stage in range(len(DRAWINGS)):
        for window.sound in range(3):
            for window.look in (0, 3): pass
    hook.remove()
    assert len(calls) == 2 and stages.heard.cache_info().misses == 6


@pytest.mark.parametrize('changes, absent', [
    (dict(queries='group', prototypes='none', sounds=()), ['prototype scores']),
    (dict(queries='cross', prototypes='none', sounds=()), ['prototype scores', 'query ownership']),
    (dict(queries='audio', prototypes='none', sounds=()), ['prototype scores', 'query ownership']),
    (dict(upsample='transposed'), []),
    (dict(levels=('V3',)), []),
], ids=str)
def test_variants_of_the_model(changes, absent, tmp_path):
    window = Explorer(Stages(Segmenter(tiny(**changes)), film(tmp_path/'a.mp4', seconds=1)))
    assert set(DRAWINGS) - set(window.texts['stage']) == set(absent)
    window.sound = 1
    for window.stage in range(len(window.texts['stage'])): assert window.text.endswith('.')
    window.stage = window.texts['stage'].index('mask by layer')
    window.row = 1                     # where no query owns a cell, the query stays


@pytest.mark.parametrize('size, side', [((48, 120), 64), ((120, 48), 64), ((48, 64), 72), ((500, 640), 64)], ids=str)
def test_shapes_of_films(size, side, tmp_path):
    "Also of a size that the model must pad; the right and bottom borders of the frame are cells of the grid."
    window = Explorer(Stages(Segmenter(tiny(), side), film(tmp_path/'a.mp4', size, seconds=1)))
    assert max(window.stages.images[0].shape) <= 320
    assert len(window.texts['row']) == len(window.texts['column']) == -(-side//4)
    for window.stage, name in enumerate(window.texts['stage']):
        for ax in window.figure.axes:
            if ax.get_gid() != 'frame': continue
            assert ax.bbox.height/ax.bbox.width == pytest.approx(size[0]/size[1], rel=.02)
            x, y = ax.transData.transform((.999, .999))/window.figure.bbox.size
            assert frame_point(window.figure, x, 1 - y) == pytest.approx((.999, .999))
            if name == 'query ownership':
                window.click(None, dict(x=x, y=1 - y), None)
                assert (window.column, window.row) == (-(-side//4) - 1,)*2
                break


def test_a_click_chooses_the_owner_and_draws_once(stages, monkeypatch):
    window = Explorer(stages)
    window.stage = window.texts['stage'].index('query ownership')
    drawn = []
    draw, *rest = DRAWINGS['query ownership']
    monkeypatch.setitem(DRAWINGS, 'query ownership', (lambda *a: drawn.append(a[1]) or draw(*a), *rest))
    box = window.figure.axes[1].bbox.transformed(window.figure.transFigure.inverted())
    window.click(None, dict(x=box.x0 + .8*box.width, y=1 - box.y0 - .3*box.height), None)
    assert (window.column, window.row) == (12, 11) and window.query == stages.owners(0)[11, 12]
    assert drawn == [Glance(0, (OWN,), window.query, 12, 11)]


def test_a_picture_shows_what_changed(stages):
    "Two sounds give two rows; the same glance the same bytes."
    for name, (draw, controls, _) in DRAWINGS.items():
        one, both, again = (to_png(draw(stages, Glance(1, sounds))[0]) for sounds in ((OWN,), (OWN, SILENCE), (OWN, SILENCE)))
        assert (one != both) == ('sound' in controls) and both == again, name


def test_region_maps(tmp_path):
    from ppqg_nb.regions import ClassicRegions
    model = tiny(regions=True)
    with pytest.raises(ValueError, match='region map'): Segmenter(model)
    window = Explorer(Stages(Segmenter(model, regions=ClassicRegions()), film(tmp_path/'a.mp4', seconds=1)))
    assert window.png


def test_what_is_refused(tmp_path):
    segmenter, source = Segmenter(tiny()), film(tmp_path/'a.mp4', seconds=1)
    mute = save(tmp_path/'mute.mp4', times=np.arange(10)/10, images=[np.zeros((48, 64, 3), np.uint8)]*10)
    for error, args, words in [(MediaError, (mute,), 'no sound'), (MediaError, (source, [mute]), 'no sound'),
                               (MediaError, (tmp_path/'none.mp4',), 'no file'), (ValueError, (source, (), 0), 'fps is 0'),
                               (MediaError, (source, (), 2, 9.), 'shorter'), (ValueError, (source, (), 2, -1.), 'start is -1')]:
        with pytest.raises(error, match=words): Stages(segmenter, *args)


def test_the_command(tmp_path, monkeypatch):
    "Its notebook runs; what exists is not replaced; the exit code is JupyterLab's."
    monkeypatch.chdir(tmp_path)
    source = film(tmp_path/'it\'s a film.mp4', seconds=1)
    typed = []
    monkeypatch.setattr(subprocess, 'run', lambda line: typed.append(line) or subprocess.CompletedProcess(line, 3))
    ppqg = lambda *args: CliRunner().invoke(app, ['explore', *map(str, args)], env=dict(COLUMNS='250'))
    assert ppqg(source, '--sound', source, '--no-browser').exit_code == 3
    book = tmp_path/"it's a film_explore.ipynb"
    assert typed[0][1:] == ['-m', 'jupyterlab', book.name, '--no-browser']
    scope = {}
    exec(json.loads(book.read_text())['cells'][1]['source'].replace('\nexplore(', '\nwindow = explore('), scope)
    assert scope['window'].texts['sound'] == [OWN, SILENCE, str(source)]
    before = book.read_bytes()
    again = ppqg(source)
    assert again.exit_code == 1 and 'exists' in again.output and book.read_bytes() == before
    monkeypatch.setitem(sys.modules, 'jupyterlab', None)
    done = ppqg('-o', 'new.ipynb')
    assert done.exit_code == 1 and 'pip install jupyterlab' in done.output and len(typed) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, book.name])
