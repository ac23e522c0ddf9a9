"Files that run elsewhere: they say what the model says, at other sizes too, and tell what to feed them."
import json, pickle, sys, zipfile
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ppqg_nb import export as chapter
from ppqg_nb.core import preset
from ppqg_nb.export import FORMATS, LIMIT, Maps, as_text, card, export, opened, read_card, speed, trial, trials
from ppqg_nb.vct import VCT

# two encoders, gates, several heads: the code of the released presets, with fewer layers and channels and another backbone
SMALL = dict(image_size=64, hidden=16, pixel_mlp=(16,), pixel_layers=1, pixel_ffn=16, num_queries=4, layers=2, heads=2,
             ffn=16, vggish_width=.1, audio_hidden=(16,), backbone='test_resnet', levels=('audio', 'V4'))
WINDOWS = dict(backbone='swin_tiny_patch4_window7_224',
               backbone_options=dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4))


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return VCT(replace(preset('released-avss-swin-base-384'), **SMALL)).eval()


@pytest.fixture(scope='module')
def files(tiny, tmp_path_factory):
    "A file of each format, and its report; the model is traced once for both."
    folder, program = tmp_path_factory.mktemp('files'), chapter.trace(tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, 'trace', lambda *a: program)
        return {to: (folder/f'a{end}', export(tiny, folder/f'a{end}', to, name='tiny', licence='CC0-1.0'))
                for to, (end, _) in FORMATS.items()}


@pytest.mark.parametrize('to', FORMATS)
def test_report_and_card(files, tiny, to):
    path, report = files[to]
    assert report['bytes'] == path.stat().st_size
    assert list(report['apart']) == trials(tiny.config) == [(1, 64, 64), (2, 64, 96), (3, 128, 64)]
    assert max(report['apart'].values()) <= LIMIT
    said = as_text(report).splitlines()
    assert said[0] == f'{path}: {path.stat().st_size / 1e6:.1f} MB' and len(said) == 4
    assert list(read_card(path)['inputs']) == ['frames', 'patches', 'regions']
    assert read_card(path) == card(tiny.config, name='tiny', licence='CC0-1.0')
    assert [p.name for p in path.parent.iterdir() if 'part' in p.name] == []


@pytest.mark.parametrize('to', FORMATS)
def test_other_sizes_and_frames_one_by_one(files, tiny, to):
    run = opened(files[to][0])
    given = [v.numpy() for v in trial(tiny.config, 5, 224, 96, seed=9)]
    with torch.no_grad(): expected = Maps(tiny)(*map(torch.from_numpy, given)).numpy()
    got = run(*given)
    np.testing.assert_allclose(got, expected, atol=LIMIT, rtol=0)
    alone = np.concatenate([run(*(v[i:i + 1] for v in given)) for i in range(5)])
    np.testing.assert_allclose(alone, got, atol=LIMIT, rtol=0)


def test_card_is_enough_in_onnxruntime(files):
    "Names, types and shapes of the card are those of the graph."
    session = onnxruntime.InferenceSession(files['onnx'][0], providers=['CPUExecutionProvider'])
    told = json.loads(session.get_modelmeta().custom_metadata_map['ppqg_nb'])
    assert [i.name for i in session.get_inputs()] == list(told['inputs'])
    assert [o.name for o in session.get_outputs()] == [told['output']['name']]
    for i in session.get_inputs():
        assert i.type == 'tensor(float)' and told['inputs'][i.name]['dtype'] == 'float32'
        shape = told['inputs'][i.name]['shape']
        assert [n if isinstance(n, int) else '' for n in i.shape] == [n if isinstance(n, int) else '' for n in shape]
    onnx.checker.check_model(files['onnx'][0], full_check=True)
    assert onnx.load(files['onnx'][0]).opset_import[0].version == 18


def test_shifted_windows_at_one_size(tmp_path):
    torch.manual_seed(0)
    model = VCT(replace(preset('released-avss-swin-base-384'), **SMALL | WINDOWS)).eval()
    with pytest.raises(ValueError, match='one size only; name it with --size'): export(model, tmp_path/'a.pt2', 'torch-export')
    report = export(model, tmp_path/'a.pt2', 'torch-export', size=64)
    assert list(report['apart']) == [(1, 64, 64), (2, 64, 64), (3, 64, 64)] and max(report['apart'].values()) <= LIMIT
    assert read_card(tmp_path/'a.pt2')['inputs']['regions']['shape'] == ['T', 3, 64, 64]


def test_a_file_that_says_something_else_is_not_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, 'compare', lambda *a: {(1, 64, 64): float('nan')})
    monkeypatch.setitem(FORMATS, 'torch-export', ('.pt2', lambda program, told, path: path.write_bytes(b'')))
    monkeypatch.setattr(chapter, 'trace', lambda *a: None)
    with pytest.raises(ValueError, match='would differ'): export(tiny, tmp_path/'a.pt2', 'torch-export')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['onnx', 'onnxruntime', 'onnxscript'])
def test_without_a_package_a_sentence_before_work(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(chapter, 'trace', None)
    with pytest.raises(ValueError, match=r"pip install 'ppqg_nb\[export\]'"): export(tiny, tmp_path/'a.onnx', 'onnx')


@pytest.mark.parametrize('path, to, size, said', [
    ('a.onnx', 'tflite', None, "no format 'tflite'; the formats are onnx, torch-export"),
    ('a.pt2', 'onnx', None, r'not end in \.onnx'),
    ('a.onnx', 'torch-export', None, r'not end in \.pt2'), ('a.onnx', 'onnx', 100, 'multiple of 32, e.g. 96'),
    ('a.onnx', 'onnx', -32, 'multiple of 32, e.g. 32'), ('no/a.onnx', 'onnx', None, 'no folder')])
def test_bad_wishes(tiny, tmp_path, monkeypatch, path, to, size, said):
    monkeypatch.setattr(chapter, 'trace', None)
    with pytest.raises(ValueError, match=said): export(tiny, tmp_path/path, to, size)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced(files, tiny):
    before = files['onnx'][0].read_bytes()
    with pytest.raises(ValueError, match='exists'): export(tiny, files['onnx'][0], 'onnx')
    assert files['onnx'][0].read_bytes() == before


def test_speed(files, tiny):
    took = speed(tiny, files['onnx'][0], times=2)
    assert set(took) == {'torch', 'file'} and min(took.values()) > 0


# reading

class Trap:
    "Unpickled, it makes a file."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


def test_a_pt2_can_run_code_and_its_card_is_read_without(files, tmp_path):
    "What the chapter warns of is so: torch.export.load runs what is pickled in a file. read_card does not."
    trap = tmp_path/'trapped'
    with zipfile.ZipFile(files['torch-export'][0]) as old, zipfile.ZipFile(tmp_path/'a.pt2', 'w') as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith('sample_inputs/model.pt'):
                torch.save(Trap(trap), tmp_path/'inputs.pt')
                data = (tmp_path/'inputs.pt').read_bytes()
            new.writestr(name, data)
    assert read_card(tmp_path/'a.pt2')['name'] == 'tiny' and not trap.exists()
    try: torch.export.load(tmp_path/'a.pt2')
    except Exception: pass
    assert trap.exists()


@pytest.mark.parametrize('name, data', [('a.pt2', b'PK no zip'), ('a.onnx', b'no protobuf'), ('b.pt2', pickle.dumps(1))])
def test_files_without_a_card(tmp_path, name, data):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError, match='holds no card'): read_card(tmp_path/name)
    with pytest.raises(FileNotFoundError): read_card(tmp_path/'no.onnx')
