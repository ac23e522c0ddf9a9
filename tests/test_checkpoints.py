"Checkpoints of the released system, of Swin, timm and VGGish: read without running code, and nothing unaccounted for."
import argparse, ast, io, os, pickle, random, struct, subprocess, sys, zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import ppqg_nb.vct as vct
from ppqg_nb.checkpoints import from_released, guess_preset, load_backbone, read_tensors, released_key, to_released, unused
from ppqg_nb.core import preset
from ppqg_nb.pyramid import Backbone, Encoder, Pyramid
from ppqg_nb.vct import VCT, convert, load_released
from ppqg_nb.vggish import HEAD, VGGish, load_torchvggish

TASKS = ('avss', 's4', 'ms3')
SWIN = dict(embed_dim=16, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2])
each_task = pytest.mark.parametrize('task', TASKS)


def name_of(task): return f'released-{task}-swin-base-384'


def small(task):
    "A small relative of a released preset."
    return replace(preset(name_of(task)), image_size=96, hidden=16, pixel_layers=1, pixel_ffn=16, layers=2, ffn=16, num_queries=5,
                   pixel_mlp=(16, 16), vggish_width=.125, audio_hidden=(16, 16), backbone_options=SWIN)


def released(task, **changes):
    "A small model, and its weights as a released state dict, buffers and VGGish's head included."
    model = VCT(small(task)).eval()
    state = {k: v.clone() for k, v in to_released(model.state_dict()).items()}
    state |= {'backbone.layers.0.blocks.0.attn.relative_position_index': torch.zeros(4, 4, dtype=torch.int64),
              'audio_backbone.embeddings.0.weight': torch.ones(3, 2), 'criterion.empty_weight': torch.ones(3)}
    return model, state | changes


def saved(path, held, **kw):
    torch.save(held, path, **kw)
    return path


def same(a, b): return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def keys(task):
    "Key, shape, dtype and kind of every tensor of a released state dict."
    for line in (Path(__file__).parent/'golden'/f'keys_{task}.txt').read_text().splitlines():
        key, shape, dtype, kind = line.split('\t')
        yield key, ast.literal_eval(shape), getattr(torch, dtype), kind


def number(i, third): return i + ' qkv'.index(third or ' ')/4      # what fills tensor i of a synthetic checkpoint


def synthetic(task, full=True):
    "A released checkpoint, in which every tensor has a number of its own; not `full`: one number is stored for each."
    state = OrderedDict()
    for i, (key, shape, dtype, _) in enumerate(keys(task)):
        x = torch.full(shape, i, dtype=dtype) if full else torch.full((), i, dtype=dtype).expand(shape)
        if full and '.in_proj_' in key:
            for third, part in zip('qkv', x.chunk(3)): part.fill_(number(i, third))
        state[key] = x
    return {'model': state, 'optimizer': {'state': {0: {'step': torch.tensor(7.)}}, 'param_groups': [{'lr': 1e-4}]},
            'scheduler': {'last_epoch': 1}, 'iteration': 44999}


# Full size

@each_task
def test_a_checkpoint_of_full_size(task, tmp_path):
    path = saved(tmp_path/'model_best.pth', synthetic(task))
    try: model, report = load_released(path)
    finally: path.unlink()
    names = {key: i for i, (key, *_) in enumerate(keys(task))}
    assert report['preset'] == name_of(task) and model.config == preset(name_of(task)) and not model.training
    assert report['used'] + sum(report['dropped'].values()) == len(names)
    assert sorted(report['dropped'].values()) == [1, 6, 48]
    used = set()
    for ours, x in model.state_dict().items():
        key, third = released_key(ours)
        used.add(key)
        assert x.dtype == torch.float32 and [v.item() for v in x.aminmax()] == [number(names[key], third)]*2, ours
    assert used == {key for key in names if not unused(key)} and len(used) == report['used']


@each_task
def test_every_released_key_has_its_place(task):
    with torch.device('meta'): wanted = VCT(preset(name_of(task))).state_dict()
    whole = to_released(wanted)
    assert {k: tuple(x.shape) for k, x in whole.items()} == {k: s for k, s, *_ in keys(task) if k in whole}
    assert {k for k, *_ in keys(task)} - set(whole) == {k for k, *_ in keys(task) if unused(k)}
    assert all(kind == 'buffer' or 'embeddings' in k for k, _, _, kind in keys(task) if unused(k))


@pytest.mark.parametrize('there, asked', [(a, b) for a in TASKS for b in TASKS if a != b])
def test_a_checkpoint_of_another_task_is_named(there, asked, tmp_path):
    path = saved(tmp_path/'model.pth', synthetic(there, full=False))
    with pytest.raises(ValueError, match=rf'(e\.g\. \S+|has shape) \(.*The file fits the preset {name_of(there)}\.$'):
        VCT.from_pretrained(path, preset=name_of(asked))
    if asked == 'avss':
        with pytest.raises(ValueError, match='only the presets whose names begin with released-'): VCT.from_pretrained(path, preset='note')
        with pytest.raises(ValueError, match=f'There is no preset .none.; .*{name_of(there)}'): VCT.from_pretrained(path, preset='none')


@each_task
def test_the_task_is_guessed(task):
    state = synthetic(task, full=False)['model']
    assert guess_preset(state) == name_of(task)
    head = 'sem_seg_head.predictor.class_embed.weight'
    assert guess_preset({k: v for k, v in state.items() if k != head}) is None
    assert guess_preset(state | {head: torch.zeros(9, 256)}) is None and guess_preset(state | {head: torch.tensor(1.)}) is None


# Small, to the bit

@each_task
def test_round_trip_and_conversion(task, tmp_path):
    model, state = released(task)
    path = saved(tmp_path/'best.pth', {'model': state, 'iteration': 3})
    again = VCT.from_pretrained(path, preset=small(task))
    assert same(model.state_dict(), again.state_dict()) and not again.training
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    report = convert(path, tmp_path/'new'/'folder', preset=small(task))
    assert report['used'] == len(state) - 3 and sum(report['dropped'].values()) == 3
    folder = VCT.from_pretrained(tmp_path/'new'/'folder')
    assert folder.config == small(task) and sorted(p.name for p in (tmp_path/'new').iterdir()) == ['folder']
    x = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.randn(2, 96, 64), torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad(): a, b = model(*x), folder(*x)
    assert torch.equal(a.mask_logits, b.mask_logits) and torch.equal(a.class_logits, b.class_logits)


def test_safetensors_and_torch_files_say_the_same(tmp_path):
    model, state = released('s4')
    save_file(state, tmp_path/'a.safetensors')
    os.rename(saved(tmp_path/'b.pth', state), tmp_path/'b.bin')
    save_file(state, tmp_path/'c.pth')                                           # content counts, not the name
    saved(tmp_path/'e.pth', state, _use_new_zipfile_serialization=False)         # as torch wrote before 1.6
    for path in sorted(tmp_path.iterdir()):
        read = read_tensors(path)
        assert set(read) == set(state) and all(torch.equal(read[k], state[k]) for k in state)
        assert same(VCT.from_pretrained(str(path), preset=small('s4')).state_dict(), model.state_dict())


STATE = {'a.weight': torch.arange(6.).view(2, 3), 'b': torch.tensor(3)}
OTHER = {k: v + 1 for k, v in STATE.items()}
def prefixed(*prefixes): return {''.join(prefixes) + k: v for k, v in STATE.items()}

@pytest.mark.parametrize('held', [
    STATE, OrderedDict(STATE), {'model': STATE}, {'state_dict': STATE}, {'model_state_dict': STATE, 'epoch': 3}, {'module': STATE},
    {'model': {'state_dict': STATE}}, {'state_dict': {'model': STATE}, 'optimizer': OTHER}, prefixed('module.'), prefixed('model.'),
    prefixed('_orig_mod.'), {'model': prefixed('module.', '_orig_mod.')}, {'state_dict': prefixed('_orig_mod.', 'module.', 'model.')},
    {'model': STATE, 'model_ema': OTHER}, {'ema': OTHER, 'state_dict': STATE}, {'model_ema': STATE, 'epoch': 1}, {'state_dict_ema': STATE},
    {'ema_state_dict': {'model': STATE}}, {'model_ema': prefixed('module.') | {'n_averaged': torch.tensor(8)}},
    {'model': STATE, 'optimizer': {'state': OTHER}, 'iteration': 5, 'best': torch.tensor(.3)}, STATE | {'version': 3},
    {'model': {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in STATE.items()}},
    {'model': STATE, 'best': np.float64(.5), 'at': np.int64(3), 'args': argparse.Namespace(lr=1e-4), 'name': 'x', 'none': None},
], ids=lambda held: '-'.join(held))
def test_wrappings(held, tmp_path):
    for legacy in (False, True):
        read = read_tensors(saved(tmp_path/'x.pth', held, _use_new_zipfile_serialization=not legacy))
        assert set(read) == set(STATE) and all(torch.equal(read[k], STATE[k]) and not read[k].requires_grad for k in STATE)


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16, torch.float64))
def test_floats_of_another_length_become_float32(dtype, tmp_path):
    model, state = released('ms3')
    path = saved(tmp_path/'x.pth', {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    again = VCT.from_pretrained(path, preset=small('ms3'))
    assert same(again.state_dict(), {k: v.to(dtype).float() for k, v in model.state_dict().items()})


# What does not fit

BIAS = 'sem_seg_head.predictor.class_embed.bias'
IN = 'sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_weight'

@pytest.mark.parametrize('changes, sentence', [
    ({BIAS: torch.zeros(4)}, rf'{BIAS} has shape \(4,\) in .*x.pth; the model needs \(3,\)\.$'),
    ({IN: torch.zeros(16, 16)}, rf'{IN} has shape \(16, 16\) in .*; the model needs \(48, 16\)\.$'),
    ({BIAS: torch.zeros(3).int()}, rf'{BIAS} is torch.int32 in .*; the model needs torch.float32'),
    ({BIAS: torch.zeros(3) > 0}, f'{BIAS} is torch.bool'), ({BIAS: torch.zeros(3) + 0j}, f'{BIAS} is torch.complex64'),
    ({BIAS: torch.tensor([0, float('nan'), 1])}, f'{BIAS} has values in .* that are not finite'),
    ({BIAS: torch.tensor([0, 0, -float('inf')])}, f'{BIAS} has values in .* that are not finite'),
    ({BIAS: torch.tensor([0, 0, 1e300], dtype=torch.float64)}, f'{BIAS} has values in .* that are not finite'),
    ({BIAS: torch.zeros(3).to_sparse()}, f'{BIAS} in .* is sparse, quantized or without values'),
    ({BIAS: torch.zeros(3, device='meta')}, f'{BIAS} in .* is sparse, quantized or without values'),
    ({BIAS: None}, rf'x.pth lacks 1 tensors of the model, e.g. {BIAS} \(3,\)\.$'),
    ({'more': torch.zeros(2, 3)}, r'x.pth has 1 tensors that the model lacks, e.g. more \(2, 3\)\.$'),
    ({BIAS: torch.zeros(1).expand(3*10**9, 10**9)}, r'has shape \(3000000000, 1000000000\)'),     # four bytes in the file
])
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_tensors_that_do_not_fit_are_named(changes, sentence, tmp_path):
    state = {k: v for k, v in released('s4', **changes)[1].items() if v is not None}
    path = saved(tmp_path/'x.pth', {'model': state})
    with pytest.raises(ValueError, match=sentence) as e: VCT.from_pretrained(path, preset=small('s4'))
    assert '\n' not in str(e.value)


def test_a_failed_load_changes_nothing():
    model, state = released('s4', **{BIAS: torch.full((3,), float('nan'))})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match='not finite'): from_released(state, model.state_dict(), 'x.pth')
    assert same(before, model.state_dict())


class Bomb:
    def __reduce__(self): return os.mkdir, ('exploded',)


class Eval:
    def __reduce__(self): return eval, ("__import__('os').mkdir('exploded')",)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('bomb', (Bomb(), Eval()), ids=('os', 'eval'))
@pytest.mark.parametrize('name', ('x.pth', 'x.safetensors'))
def test_code_is_not_run(bomb, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [pickle.dumps(bomb, protocol) for protocol in range(6)]
    for legacy in (False, True):
        for held in (bomb, {'model': STATE, 'extra': bomb}, {'model': {**STATE, 'more': bomb}}):
            file = io.BytesIO(); torch.save(held, file, _use_new_zipfile_serialization=not legacy); files.append(file.getvalue())
    for data in files:
        Path(name).write_bytes(data)
        for read in (read_tensors, VCT.from_pretrained, lambda path: convert(path, 'out'), lambda path: load_backbone(VGGish(.1), path)):
            with pytest.raises(ValueError, match=f'^{name} (would call [a-z._]+ when it is read|is no checkpoint that can be read)') as e:
                read(name)
            assert '\n' not in str(e.value)
    assert sorted(os.listdir()) == [name]


def archive(path, compression=zipfile.ZIP_STORED, extra=None):
    "The entries of a torch file, written again."
    with zipfile.ZipFile(path) as old: entries = [(name, old.read(name)) for name in old.namelist()]
    with zipfile.ZipFile(path, 'w', compression) as new:
        for entry in entries + (extra or []): new.writestr(*entry)
    return path.read_bytes()


def claiming(path, size):
    "A torch file whose central directory says that its first entry has `size` bytes."
    data = bytearray(path.read_bytes())
    at = data.rindex(b'PK\x01\x02')
    data[at + 20:at + 28] = struct.pack('<II', size, size)
    return bytes(data)


def broken_files(path):
    "Bytes by name, and what is said of them."
    good = saved(path, {'model': {'a': torch.zeros(40_000)}}).read_bytes()
    legacy = saved(path, {'a': torch.zeros(40_000)}, _use_new_zipfile_serialization=False).read_bytes()
    save_file({'a': torch.zeros(40_000)}, path)
    safe = path.read_bytes()
    path.write_bytes(good)
    script = io.BytesIO()
    with zipfile.ZipFile(script, 'w') as f: f.writestr('x/constants.pkl', b''); f.writestr('x/version', b'3')
    damaged = 'no checkpoint that can be read'
    yield 'empty', b'', damaged
    yield 'text', b'<!DOCTYPE html><html>404</html>', damaged
    yield 'nine bytes', b'\x01' + bytes(7) + b'{', 'cannot be read as safetensors'
    for n in (1, 4, 100, len(good)//2, len(good) - 1): yield f'zip of {n} bytes', good[:n], damaged
    for n in (2, 50, len(legacy)//2, len(legacy) - 1): yield f'pickle of {n} bytes', legacy[:n], damaged
    for n in (20, len(safe)//2, len(safe) - 1): yield f'safetensors of {n} bytes', safe[:n], '(cannot be read as safetensors|no checkpoint)'
    yield 'script', script.getvalue(), damaged
    yield 'claims', claiming(path, 2**31), 'claims more bytes than it has'
    yield 'compressed', archive(path, zipfile.ZIP_DEFLATED), 'is compressed, as torch.save never does'
    path.write_bytes(good)
    yield 'bomb', archive(path, zipfile.ZIP_DEFLATED, [('archive/data/9', bytes(10**7))]), 'is compressed'
    for held in ({}, [], {'model': {}}, {'epoch': 3}, [torch.zeros(2)], torch.zeros(2), {'optimizer': {'a': torch.zeros(2)}}, {1: torch.zeros(2)}):
        yield f'{held}', saved(path, held).read_bytes(), 'holds no tensors by name; a state dict is needed'


def test_broken_files_are_named(tmp_path):
    path, seen = tmp_path/'x.pth', 0
    for name, data, sentence in broken_files(tmp_path/'y.pth'):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f'x.pth .*{sentence}') as e: read_tensors(path)
        assert '\n' not in str(e.value), name
        seen += 1
    assert seen == 27
    for path in (tmp_path, tmp_path/'no.pth'):
        with pytest.raises(FileNotFoundError, match='(is a folder|does not exist); name a checkpoint'): read_tensors(path)


def test_a_damaged_file_is_read_or_refused(tmp_path):
    rng = random.Random(0)
    for legacy in (False, True):
        good = saved(tmp_path/'x.pth', {'model': STATE, 'best': np.float64(1)}, _use_new_zipfile_serialization=not legacy).read_bytes()
        for _ in range(150):
            data = bytearray(good)
            for _ in range(rng.choice((1, 1, 3, 20))): data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path/'x.pth').write_bytes(data)
            try: read = read_tensors(tmp_path/'x.pth')
            except ValueError as e: assert '\n' not in str(e)
            else: assert all(isinstance(v, torch.Tensor) for v in read.values())


def test_a_dict_within_itself_is_no_state_dict(tmp_path):
    held = {}; held['model'] = held
    with pytest.raises(ValueError, match='(holds no tensors|no checkpoint)'): read_tensors(saved(tmp_path/'x.pth', held))


def test_what_is_no_released_file_asks_for_the_preset(tmp_path):
    path = saved(tmp_path/'x.pth', STATE)
    with pytest.raises(ValueError, match='does not tell by its shapes which released preset it fits; name the preset'): VCT.from_pretrained(path)
    with pytest.raises(ValueError, match=r'x.pth lacks \d+ tensors of the model, e.g. \S+ \('): VCT.from_pretrained(path, preset=name_of('s4'))
    with pytest.raises(FileNotFoundError, match='There is no file .*no/file.pth'): VCT.from_pretrained('no/file.pth')


# Writing

def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    path = saved(tmp_path/'x.pth', released('s4')[1])
    (tmp_path/'out').mkdir()
    convert(path, tmp_path/'out', preset=small('s4'))                            # an empty one is taken
    before = {p.name: p.read_bytes() for p in (tmp_path/'out').iterdir()}
    for out in ('out', 'x.pth'):
        with pytest.raises(ValueError, match=f'{out} exists and is no empty folder; name a new one'): convert(path, tmp_path/out)
    assert {p.name: p.read_bytes() for p in (tmp_path/'out').iterdir()} == before


@pytest.mark.parametrize('there', (False, True))
def test_a_full_disk_leaves_nothing(there, tmp_path, monkeypatch):
    path = saved(tmp_path/'x.pth', released('s4')[1])
    if there: (tmp_path/'out').mkdir()
    def full(state, name, *a, **kw):
        Path(name).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(vct, 'save_file', full)
    with pytest.raises(OSError, match='out could not be written, and nothing was left there: .*No space left'):
        convert(path, tmp_path/'out', preset=small('s4'))
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['out', 'x.pth'][not there:]


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no limit on the size of files')
def test_a_file_that_may_not_grow_leaves_nothing(tmp_path):
    saved(tmp_path/'x.pth', released('s4')[1])
    code = f'''import resource, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoints import convert, small
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try: convert('x.pth', 'out', preset=small('s4'))
except OSError as e: print(e)'''
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert 'out could not be written, and nothing was left there' in done.stdout, done.stderr
    assert os.listdir(tmp_path) == ['x.pth']


# Backbones

def microsoft(state):
    "timm's state dict of a Swin as Microsoft writes it: halving at the end of a stage, buffers, a head of its own."
    def theirs(k):
        if 'downsample' in k: k = f'layers.{int(k.split(".")[1]) - 1}.' + k.split('.', 2)[2]
        return k.replace('head.fc', 'head')
    out = {theirs(k): v for k, v in state.items()}
    for k in list(out):
        if k.endswith('attn.proj.bias'): out[k.replace('proj.bias', 'relative_position_index')] = torch.zeros(9, 9, dtype=torch.int64)
        if k.endswith('blocks.1.norm1.bias'): out[k.replace('norm1.bias', 'attn_mask')] = torch.zeros(4, 9, 9)
    return {'model': out}


def swin(window=3, **changes):
    "A whole Swin, whose biases by place differ, and the same cut into stages, with other weights."
    options = SWIN | dict(window_size=window) | changes
    whole = timm.create_model('swin_base_patch4_window12_384', img_size=96, num_classes=7, **options).eval()
    for k, p in whole.named_parameters():
        if k.endswith('table'): torch.nn.init.normal_(p)
    return whole, Backbone('swin_base_patch4_window12_384', 96, **(SWIN | dict(window_size=3))).eval()


def stages_of(whole): return dict(whole.state_dict())


@torch.no_grad()
def alike(whole, backbone, size=96):
    "Whether the last stage is the same: `backbone` pads as `whole` where windows divide the map."
    x = torch.randn(1, 3, size, size)
    return torch.allclose(whole.forward_intermediates(x, intermediates_only=True, output_fmt='NCHW', norm=False)[-1], backbone(x)[-1], atol=1e-5)


@pytest.mark.parametrize('written', ('timm', 'microsoft', 'safetensors', 'headless', 'stages'))
def test_swin_from_a_file(written, tmp_path):
    whole, backbone = swin()
    state, path = dict(whole.state_dict()), tmp_path/'x.pth'
    if written == 'headless': state = {k: v for k, v in state.items() if not k.startswith(('head', 'norm.'))}
    if written == 'stages': state = {k.replace('layers.', 'layers_', 1): v for k, v in state.items() if not k.startswith(('head', 'norm.'))}
    if written == 'safetensors': save_file(state, path)
    else: saved(path, microsoft(state) if written == 'microsoft' else state)
    assert not alike(whole, backbone)
    dropped = load_backbone(backbone, path)
    assert alike(whole, backbone)
    head = {'microsoft': {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}, 'headless': set(), 'stages': set()}
    assert {k for k, why in dropped.items() if why == 'behind the last stage'} == \
        head.get(written, {'norm.weight', 'norm.bias', 'head.fc.weight', 'head.fc.bias'})
    assert len(dropped) == (5 + 1 + 4 if written == 'microsoft' else len(head.get(written, 'four')))


def test_both_encoders_of_a_pyramid(tmp_path):
    whole, _ = swin()
    config = replace(small('s4'), backbone_options=SWIN | dict(window_size=3))
    pyramid, path = Pyramid(config), saved(tmp_path/'x.pth', microsoft(whole.state_dict()))
    load_backbone(pyramid, path)
    assert alike(whole, pyramid.frames.backbone.eval()) and alike(whole, pyramid.regions.backbone.eval())
    encoder = Encoder(config.backbone, 96, True, **config.backbone_options).eval()
    load_backbone(encoder, path)
    assert alike(whole, encoder.backbone)


@pytest.mark.parametrize('window', (2, 4, 6))
def test_tables_of_another_window_are_resized_as_timm_does(window, tmp_path):
    from timm.models.swin_transformer import checkpoint_filter_fn
    (whole, _), (wanted, backbone) = swin(window), swin()
    wanted.load_state_dict(checkpoint_filter_fn(dict(whole.state_dict()), wanted))
    load_backbone(backbone, saved(tmp_path/'x.pth', microsoft(whole.state_dict())))
    assert alike(wanted, backbone)
    old, new = (m.state_dict()[k] for m, k in ((whole, 'layers.0.blocks.0.attn.relative_position_bias_table'),
                                               (backbone.stages, 'layers_0.blocks.0.attn.relative_position_bias_table')))
    assert torch.allclose(old[len(old)//2], new[len(new)//2], atol=1e-5)         # the middle stays where it is


@pytest.mark.parametrize('name', ('convnext_atto', 'resnet18', 'vit_tiny_patch16_224', 'mobilenetv3_small_050'))
def test_other_models_of_timm(name, tmp_path):
    whole = timm.create_model(name, num_classes=5, **(dict(img_size=96) if 'vit' in name else {})).eval()
    backbone = Backbone(name, 96).eval()
    dropped = load_backbone(backbone, saved(tmp_path/'x.pth', {'state_dict': whole.state_dict()}))
    assert len(dropped) + len(backbone.stages.state_dict()) == len(whole.state_dict())
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad(): here, there = whole.forward_intermediates(x, intermediates_only=True), backbone.stages(x)
    assert torch.allclose(here[-1], there[-1], atol=1e-5)


def test_a_backbone_that_does_not_fit_is_named_and_stays(tmp_path):
    whole, backbone = swin()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    state = dict(whole.state_dict())
    key = 'layers.2.blocks.0.attn.relative_position_bias_table'
    for changed, sentence in (
        ({**state, 'layers.2.blocks.7.norm1.weight': torch.zeros(3)}, 'has 1 tensors that the model lacks, e.g. layers.2.blocks.7.norm1.weight'),
        ({**state, 'teacher.x': torch.zeros(3)}, 'has 1 tensors that the model lacks, e.g. teacher.x'),
        ({k: v for k, v in state.items() if k != 'patch_embed.proj.bias'}, 'lacks 1 tensors of the model, e.g. patch_embed.proj.bias'),
        (state | {key: torch.zeros(25, 7)}, r'has shape \(25, 7\) in .*; the model needs \(25, 2\)'),
        (state | {key: torch.zeros(50, 2)}, r'has shape \(50, 2\) in .*; the model needs \(25, 2\)'),
        (state | {'patch_embed.proj.bias': torch.full((16,), float('nan'))}, 'patch_embed.proj.bias has values in .* not finite'),
        (dict(timm.create_model('resnet18').state_dict()), 'lacks')):
        path = saved(tmp_path/'x.pth', changed)
        with pytest.raises(ValueError, match=sentence): load_backbone(backbone, path)
        assert same(before, backbone.state_dict())


def test_vggish_as_torchvggish_writes_it(tmp_path):
    model, other = VGGish(.125), VGGish(.125)
    state = dict(model.state_dict()) | {k: torch.zeros(2) for k in HEAD}
    path = saved(tmp_path/'vggish.pth', state)
    assert set(load_torchvggish(other, read_tensors(path))) == set(HEAD)
    assert same(model.state_dict(), other.state_dict())
