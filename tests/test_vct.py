"The assembled model: what the chapter leaves out, on small relatives of all presets."
import copy, io, json, os, pickle, shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub, pytest, torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file

import ppqg_nb.vct as vct
from ppqg_nb.checkpoints import to_released
from ppqg_nb.core import PRESETS, PROTOTYPES, Config, preset
from ppqg_nb.losses import criterion
from ppqg_nb.vct import SHIPPED, VCT, Layer, Prediction, convert, stage_costs
from ppqg_nb import listening

CONVNEXT = dict(backbone='convnext_atto', backbone_options=dict(depths=[1, 1, 1, 1], dims=[16, 16, 32, 32]))
SWIN = dict(backbone_options=dict(embed_dim=32, depths=[1, 1, 2, 2], num_heads=[1, 2, 4, 8]))
LITTLE = dict(image_size=96, hidden=64, num_queries=7, pixel_mlp=(16, 16), pixel_ffn=32, heads=4, ffn=32, vggish_width=.125, points=0)
WORDS = ('background', 'bell', 'bird')


def little(name, **changes):
    "A small relative of a preset: the same choices, few numbers."
    c = preset(name)
    base = LITTLE | dict(pixel_layers=min(c.pixel_layers, 2), layers=5 if c.layers > 5 else c.layers)
    if c.audio_hidden: base['audio_hidden'] = (16, 16)
    if c.classes == c.sounds: base |= dict(classes=WORDS, sounds=WORDS)
    return replace(c, **(base | (SWIN if c.backbone.startswith('swin') else CONVNEXT) | changes))


def inputs(config, frames=3, size=(64, 96), seed=0):
    "Random frames, patches and, where the model takes them, region maps."
    g = torch.Generator().manual_seed(seed)
    def pixels(): return torch.randint(0, 256, (frames, 3, *size), generator=g, dtype=torch.uint8)
    x = pixels(), torch.randn(frames, 96, 64, generator=g) - 3
    return (*x, pixels()) if config.regions else x


def targets(config, frames=3, size=(64, 96), seed=1):
    "Random objects, one of each class."
    g = torch.Generator().manual_seed(seed)
    def one():
        labels = torch.randint(0, len(config.classes), size, generator=g)
        ids = labels.unique()
        return dict(labels=ids, masks=labels == ids[:, None, None], sounds=torch.tensor([1]) if config.sounds else [])
    return [one() for _ in range(frames)]


@torch.no_grad()
def ask(model, *x, **kw): return model(*x, **kw)


def tensors(pred): return [t for layer in pred.layers for t in layer] + [t for t in pred.generated if t is not None]


each_preset = pytest.mark.parametrize('name', PRESETS)
VARIANTS = [dict(queries=q, prototypes='none') for q in ('audio', 'visual', 'cross', 'group')] + \
           [dict(queries='ppqg', prototypes=p) for p in PROTOTYPES] + [dict(upsample='transposed'), dict(learned_queries=True)]
each_variant = pytest.mark.parametrize('change', VARIANTS, ids=lambda c: '-'.join(map(str, c.values())))


def quick(**changes): return little('note', **(CONVNEXT | changes))


def test_public_face():
    model = VCT.from_preset('scenes-tiny').eval()
    frames, patches = torch.rand(2, 3, 64, 96), torch.randn(2, 96, 64)
    pred = ask(model, frames, patches, regions=None)
    assert isinstance(pred, Prediction) and all(isinstance(layer, Layer) for layer in pred.layers)
    assert len(pred.layers) == model.config.layers + 1
    assert pred.class_logits.shape == (2, 16, 33) and pred.mask_logits.shape == (2, 16, 16, 24)
    assert pred.class_logits is pred.layers[-1].class_logits and pred.mask_logits is pred.layers[-1].mask_logits
    assert pred.scores.shape == (2, 32)
    maps = model.compose(pred, size=(40, 50))
    assert maps.shape == (2, 32, 40, 50) and maps.dtype == torch.float32 and maps.min() >= 0
    assert model.compose(pred).shape == (2, 32, 64, 96)


@each_preset
def test_shapes_loss_and_gradient_of_every_preset(name):
    config = little(name)
    model, x = VCT(config), inputs(config, size=(50, 70))
    assert any(p.requires_grad for p in model.vggish.parameters()) != config.vggish_frozen
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    for step in range(2):    # some matrices start at zero, and what is behind them hears the loss from the second step on
        loss, parts = criterion(model(*x), targets(config, size=(50, 70)), config)
        optimizer.zero_grad(); loss.backward()
        if step == 0: optimizer.step()
    assert loss.isfinite() and ('pac' in parts) == (config.prototypes == 'pac')
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]
    assert silent == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@each_variant
def test_every_variant_trains(change):
    config = quick(**change)
    model, x = VCT(config), inputs(config)
    pred = model(*x)
    loss, parts = criterion(pred, targets(config), config)
    loss.backward()
    assert ('pac' in parts) == (config.prototypes in ('pac', 'visual'))
    assert (pred.generated.assignment is not None) == config.owns_pixels
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert pred.mask_logits.shape[-2:] == ((64, 96) if config.upsample == 'transposed' else (16, 24))
    assert model.compose(pred, (33, 20)).shape == (3, 3, 33, 20)


@each_preset
def test_eval_is_deterministic_and_train_is_not(name):
    config = little(name)
    model, x = VCT(config).eval(), inputs(config)
    assert all(torch.equal(a, b) for a, b in zip(tensors(ask(model, *x)), tensors(ask(model, *x))))
    model.train()
    assert not torch.equal(ask(model, *x).mask_logits, ask(model, *x).mask_logits)


@each_preset
@pytest.mark.parametrize('size', ((64, 96), (50, 70)))
def test_a_batch_is_its_frames_one_by_one(name, size):
    config = little(name)
    model, x = VCT(config).eval(), inputs(config, 4, size)
    together = ask(model, *x)
    for i in range(4):
        alone = ask(model, *(t[i:i + 1] for t in x))
        for a, b in zip(alone.layers, together.layers):
            assert torch.allclose(a.class_logits[0], b.class_logits[i], atol=1e-5, rtol=1e-5)
            assert torch.allclose(a.mask_logits[0], b.mask_logits[i], atol=1e-5, rtol=1e-4)


@each_preset
def test_the_last_prediction_alone_is_the_same_to_the_bit(name):
    config = little(name)
    model, x = VCT(config).eval(), inputs(config)
    every, last = ask(model, *x), ask(model, *x, every_layer=False)
    assert len(every.layers) == config.layers + 1 and len(last.layers) == 1
    assert all(torch.equal(a, b) for a, b in zip(every.layers[-1], last.layers[0]))


@pytest.mark.parametrize('name', ('scenes-tiny', 'released-avss-swin-base-384'))
@pytest.mark.parametrize('size', ((32, 32), (1, 1), (33, 95), (128, 40), (200, 300)))
def test_any_size(name, size):
    config = little(name)
    model = VCT(config).eval()
    pred = ask(model, *inputs(config, 1, size))
    assert pred.size == size and all(n % 32 == 0 and 0 <= n - m < 32 for n, m in zip(pred.padded, size))
    assert pred.mask_logits.shape[-2:] == tuple(n // 4 for n in pred.padded)
    maps = model.compose(pred)
    assert maps.shape[-2:] == size and maps.isfinite().all()


@pytest.mark.parametrize('frames', (1, 2, 11))
def test_any_number_of_frames(frames):
    config = quick()
    assert ask(VCT(config).eval(), *inputs(config, frames)).mask_logits.shape[0] == frames


def counted(module):
    "A list that grows by the number of frames at each call of a module."
    calls = []
    module.register_forward_hook(lambda m, given, made: calls.append(len(given[0])))
    return calls


def test_many_frames_go_through_in_pieces_and_give_the_same(monkeypatch):
    model = VCT(quick()).eval()
    frames, patches = inputs(model.config, 5)
    calls, whole = counted(model.pyramid), ask(model, frames, patches)
    owner = torch.tensor([0, 3, 3, 4, 1])
    shared, maps = ask(model, frames, patches, owner=owner), model.compose(whole, (40, 50))
    monkeypatch.setattr(vct, 'TOGETHER', 2 * 64 * 96)
    pieces = ask(model, frames, patches)
    assert calls == [5, 5, 2, 2, 1]
    for a, b in zip(tensors(whole), tensors(pieces)): assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
    assert (pieces.size, pieces.padded) == (whole.size, whole.padded)
    for a, b in zip(tensors(shared), tensors(ask(model, frames, patches, owner=owner))): assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr(vct, 'TOGETHER', 2 * 40 * 50)
    assert torch.allclose(model.compose(pieces, (40, 50)), maps, atol=1e-5)
    calls.clear()
    model(frames, patches)                              # gradients are asked for: all at once
    assert calls == [5]


def test_what_is_the_same_is_computed_once():
    model = VCT(little('released-ms3-swin-base-384', backbone='convnext_atto', backbone_options=CONVNEXT['backbone_options'])).eval()
    frames, patches, regions = inputs(model.config)
    seen, marked = counted(model.pyramid.frames), counted(model.pyramid.regions)
    one = ask(model, frames, patches, regions[:1])                                          # a region map for all frames
    assert (seen, marked) == ([3], [1])
    each = ask(model, frames, patches, regions[:1].expand(3, -1, -1, -1))
    still = ask(model, frames[:1], patches, regions[:1], owner=torch.tensor([0, 0, 0]))     # a picture with three sounds
    assert (seen, marked) == ([3, 3, 1], [1, 3, 1])
    assert torch.allclose(one.mask_logits, each.mask_logits, atol=1e-4) and torch.allclose(one.mask_logits[0], still.mask_logits[0], atol=1e-4)
    with pytest.raises(ValueError, match='regions has shape'): ask(model, frames, patches, regions[:2])


def test_uint8_and_float_frames_are_the_same():
    config = quick()
    model, (frames, patches) = VCT(config).eval(), inputs(config)
    for dtype in (torch.float32, torch.float64):
        assert torch.allclose(ask(model, frames.to(dtype) / 255, patches).mask_logits, ask(model, frames, patches).mask_logits, atol=1e-4)


def test_composing_at_the_models_own_size_is_plain_bilinear():
    model = VCT(quick()).eval()
    pred = ask(model, *inputs(model.config, 2))
    z = torch.nn.functional.interpolate(pred.mask_logits, (64, 96), mode='bilinear').sigmoid()
    p = pred.class_logits.softmax(-1)[..., :-1]
    assert torch.allclose(model.compose(pred, (64, 96)), torch.einsum('bnk,bnhw->bkhw', p, z), atol=1e-5)


@each_preset
def test_bfloat16_autocast(name):
    config = little(name)
    model, x = VCT(config).eval(), inputs(config)
    plain = ask(model, *x)
    with torch.autocast('cpu', torch.bfloat16):
        half = ask(model, *x)
        maps = model.compose(half)
    assert half.mask_logits.dtype == torch.bfloat16 and maps.dtype == torch.float32
    assert (maps - model.compose(plain)).abs().mean() < .05
    loss, _ = criterion(half, targets(config), config)
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize('name', ('scenes-tiny', 'note', 'released-avss-swin-base-384'))
def test_compiles_without_graph_break(name):
    config = little(name, layers=4, pixel_layers=min(1, preset(name).pixel_layers))
    model, x = VCT(config).eval(), inputs(config, 2)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    assert torch.allclose(ask(compiled, *x).mask_logits, ask(model, *x).mask_logits, atol=1e-5)
    assert torch.allclose(compiled(*x).class_logits, model(*x).class_logits, atol=1e-5)       # with gradients too


@pytest.mark.skipif(not any(map(shutil.which, ('c++', 'g++', 'clang++'))) or os.name == 'nt', reason='needs a C++ compiler')
def test_compiles_to_machine_code():
    config = quick(layers=1, levels=('audio',), num_queries=3)
    model, x = VCT(config).eval(), inputs(config, 1)
    torch._dynamo.reset()
    try: got = ask(torch.compile(model, fullgraph=True), *x)
    except Exception as e:
        if any(word in str(e) for word in ('Python.h', 'omp.h', 'InvalidCxxCompiler')): pytest.skip('the compiler lacks headers')
        raise
    assert torch.allclose(got.mask_logits, ask(model, *x).mask_logits, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@each_preset
def test_cuda_runs_the_same_code(name):
    config = little(name)
    model, x = VCT(config).eval(), inputs(config)
    here = ask(model, *x)
    there = ask(model.cuda(), *(t.cuda() for t in x))
    assert (here.mask_logits - there.mask_logits.cpu()).abs().mean() < 1e-2
    assert model.compose(there).is_cuda


def test_copies_and_moves_like_any_module():
    model = VCT(quick()).eval()
    twin, x = copy.deepcopy(model), inputs(model.config)
    assert torch.equal(ask(twin, *x).mask_logits, ask(model, *x).mask_logits)
    assert twin.config == model.config


@each_preset
def test_a_folder_and_back_to_the_bit(name, tmp_path):
    config = little(name)
    torch.manual_seed(5)
    model, x = VCT(config).eval(), inputs(config)
    assert model.save_pretrained(tmp_path / 'a' / 'b') is None
    assert {'config.json', 'model.safetensors'} <= {p.name for p in (tmp_path / 'a' / 'b').iterdir()}
    for source in (tmp_path / 'a' / 'b', str(tmp_path / 'a' / 'b')):
        again = VCT.from_pretrained(source)
        assert again.config == config and not again.training
        a, b = model.state_dict(), again.state_dict()
        assert list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
        assert all(torch.equal(p, q) for p, q in zip(tensors(ask(model, *x)), tensors(ask(again, *x))))
        assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = VCT(quick())
    for name in 'ab': model.save_pretrained(tmp_path / name)
    for name in ('config.json', 'model.safetensors'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    config = json.loads((tmp_path / 'a' / 'config.json').read_text(encoding='utf-8'))
    assert Config.from_dict(config) == model.config


def test_pushing_uploads_the_two_files(monkeypatch):
    sent = {}
    class Hub:
        def __init__(self, **kw): pass
        def create_repo(self, repo_id, **kw): return type('Repo', (), dict(repo_id=repo_id))
        def upload_folder(self, repo_id, folder_path, **kw):
            sent.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()}, id=repo_id)
    monkeypatch.setattr(huggingface_hub.hub_mixin, 'HfApi', Hub)
    model = VCT(quick())
    model.push_to_hub('user/model')
    assert sent.pop('id') == 'user/model'
    assert set(sent) == {'README.md', 'config.json', 'model.safetensors'}
    assert b'audio-visual-segmentation' in sent['README.md']
    assert Config.from_dict(json.loads(sent['config.json'])) == model.config


def test_a_hub_name_is_fetched(tmp_path, monkeypatch):
    model, asked = VCT(quick()).eval(), []
    model.save_pretrained(tmp_path)
    def fetched(repo, name, **kw): asked.append((repo, name, kw)); return str(tmp_path / name)
    monkeypatch.setattr(vct, 'hf_hub_download', fetched)
    again = VCT.from_pretrained('user/model', revision='v1')
    assert asked == [('user/model', n, dict(revision='v1')) for n in ('config.json', 'model.safetensors')]
    assert torch.equal(again.class_head.weight, model.class_head.weight)


@pytest.mark.parametrize('error', (LocalEntryNotFoundError('offline, and nothing cached\nmore'), HFValidationError('no repo id'), OSError('no route')))
def test_what_the_hub_says_becomes_one_sentence(error, monkeypatch):
    def fetched(*a, **kw): raise error
    monkeypatch.setattr(vct, 'hf_hub_download', fetched)
    with pytest.raises(FileNotFoundError, match='There is no folder no/where, and the hub gave no config.json') as e:
        VCT.from_pretrained('no/where')
    assert '\n' not in str(e.value)


def test_a_preset_without_weights_says_so():
    for name in set(PRESETS) - {'scenes-tiny'}:
        with pytest.raises(FileNotFoundError, match=f"No weights ship for the preset '{name}'; VCT.from_preset"):
            VCT.from_pretrained(name)


def test_the_model_that_ships():
    folder = SHIPPED/'scenes-tiny'
    model = VCT.from_pretrained('scenes-tiny')
    assert model.config == preset('scenes-tiny') and not model.training
    assert sum(p.stat().st_size for p in folder.iterdir()) < 12e6
    assert {p.name for p in folder.iterdir()} == {'README.md', 'config.json', 'log.csv', 'first', 'model.safetensors', 'run.json', 'scores.csv'}
    assert listening.as_text(listening.stored()) in (folder/'README.md').read_text(encoding='utf-8')       # the card's table


def test_a_pretrained_backbone_is_not_fetched_again(tmp_path, monkeypatch):
    import timm
    config = quick()
    VCT(config).save_pretrained(tmp_path)
    wish = config.to_dict(); wish['backbone_options'] = wish['backbone_options'] | dict(pretrained=True)
    (tmp_path / 'config.json').write_text(json.dumps(wish))
    seen, create = [], timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda *a, **kw: seen.append(kw.get('pretrained')) or create(*a, **kw))
    VCT.from_pretrained(tmp_path)
    assert seen and not any(seen)


class Bomb:
    def __reduce__(self): return os.mkdir, ('exploded',)


def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    VCT(quick()).save_pretrained(tmp_path)
    torch_file = io.BytesIO(); torch.save(Bomb(), torch_file)
    for data in (pickle.dumps(Bomb()), torch_file.getvalue()):
        (tmp_path / 'model.safetensors').write_bytes(data)
        with pytest.raises(ValueError, match='cannot be read as safetensors'): VCT.from_pretrained(tmp_path)
    assert not (tmp_path / 'exploded').exists()


@pytest.mark.parametrize('text', ('', '[]', '[1, 2]', '{"hidden": 7}', '{"layers": "nine"}', 'null', '"note"', '{"a": 1}'))
def test_a_broken_config_is_named(text, tmp_path):
    (tmp_path / 'config.json').write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match='config.json is not the config of a model: .'): VCT.from_pretrained(tmp_path)


def test_a_config_that_is_no_text_is_named(tmp_path):
    (tmp_path / 'config.json').write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match='is not the config of a model'): VCT.from_pretrained(tmp_path)


def test_missing_and_surplus_files_and_tensors_are_named(tmp_path):
    model = VCT(quick()); model.save_pretrained(tmp_path)
    state = load_file(tmp_path / 'model.safetensors')
    vct.save_file(state | {'more': torch.zeros(1)}, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match='has 1 tensors that the model lacks, e.g. more'): VCT.from_pretrained(tmp_path)
    (tmp_path / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match='has no config.json; give the folder'): VCT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match='without its config; give the folder it lies in'):
        model.save_pretrained(tmp_path)
        VCT.from_pretrained(tmp_path / 'model.safetensors')


def test_a_preset_is_for_checkpoint_files_alone(tmp_path, monkeypatch):
    VCT(quick()).save_pretrained(tmp_path)
    monkeypatch.setattr(vct, 'hf_hub_download', lambda repo, name, **kw: str(tmp_path / name))
    for source in (tmp_path, 'user/model'):
        with pytest.raises(ValueError, match=f'{source} has a config of its own; leave the preset out'):
            VCT.from_pretrained(source, preset='note')


def test_what_is_no_model_is_named(tmp_path):
    VCT(quick()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='config.json is no checkpoint that can be read'):
        VCT.from_pretrained(tmp_path / 'config.json')
    for source in ('gone.pth', 'weights/gone.pth', 'gone.safetensors', tmp_path / 'gone.bin', tmp_path / 'gone.pt'):
        with pytest.raises(FileNotFoundError, match=f'There is no file {source}; name a checkpoint'): VCT.from_pretrained(source)
    for source in ('gone', tmp_path / 'gone'):
        with pytest.raises(FileNotFoundError, match=f'There is no folder {source}; name one that save_pretrained wrote, a checkpoint'):
            VCT.from_pretrained(source)


def test_a_converted_folder_can_be_pushed_and_fetched(tmp_path, monkeypatch):
    "A checkpoint file to a folder, to a hub that is a folder too, and back to the bit."
    config = little('released-ms3-swin-base-384')
    torch.manual_seed(3)
    model = VCT(config).eval()
    torch.save({'model': to_released(model.state_dict())}, tmp_path / 'best.pth')
    convert(tmp_path / 'best.pth', tmp_path / 'folder', preset=config)
    class Hub:
        def __init__(self, **kw): pass
        def create_repo(self, repo_id, **kw): return type('Repo', (), dict(repo_id=repo_id))
        def upload_folder(self, repo_id, folder_path, **kw): shutil.copytree(folder_path, tmp_path / 'hub' / repo_id)
    monkeypatch.setattr(huggingface_hub.hub_mixin, 'HfApi', Hub)
    VCT.from_pretrained(tmp_path / 'folder').push_to_hub('user/model')
    monkeypatch.setattr(vct, 'hf_hub_download', lambda repo, name, **kw: str(tmp_path / 'hub' / repo / name))
    again = VCT.from_pretrained('user/model')
    assert again.config == config
    assert all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), again.state_dict().values()))


X = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 96, 64)

@pytest.mark.parametrize('x, sentence', (
    ((X[0][0], X[1]), r'frames has shape \(3, 64, 64\); it must be \(B, 3, H, W\)'),
    ((X[0].movedim(1, -1), X[1]), r'frames has shape \(2, 64, 64, 3\)'),
    ((X[0][:, :1], X[1]), r'frames has shape \(2, 1, 64, 64\)'),
    ((X[0], X[1][:1]), r'patches has shape \(1, 96, 64\); it must be \(B, 96, 64\) with B = 2'),
    ((X[0], X[1][:, None]), r'patches has shape \(2, 1, 96, 64\)'),
    ((X[0], X[1].mT), r'patches has shape \(2, 64, 96\)'),
    ((X[0], X[1].int()), 'patches are torch.int32'),
    ((X[0].numpy(), X[1]), 'frames is a ndarray; it must be a torch.Tensor'),
    ((X[0], None), 'patches is a NoneType'),
    ((*X, X[0]), 'no encoder for regions'),
    ((X[0].long(), X[1]), 'int64'),
    ((X[0] + 128., X[1]), r'divide by 255'),
))
def test_inputs_that_do_not_fit_are_named(x, sentence):
    with pytest.raises(ValueError, match=sentence): VCT(quick())(*x)


def test_regions_that_are_missing_or_of_another_size_are_named():
    model = VCT(quick(regions=True))
    with pytest.raises(ValueError, match='needs regions, a region map for each frame'): model(*X)
    with pytest.raises(ValueError, match=r'regions has shape \(2, 3, 32, 64\)'): model(*X, X[0][:, :, :32])


@pytest.mark.parametrize('config', ('note', None, 5))
def test_what_is_no_config_is_named(config):
    with pytest.raises(ValueError, match='VCT needs a Config, not'): VCT(config)


def test_a_dict_is_as_good_as_a_config():
    assert VCT(quick().to_dict()).config == quick()


@pytest.mark.parametrize('upsample', ('bilinear', 'transposed'))
def test_costs_grow_with_the_picture_and_count_what_there_is(upsample):
    config = little('released-avss-swin-base-384', upsample=upsample)
    model = VCT(config)
    costs = stage_costs(config)
    assert sum(c[0] for c in costs.values()) == sum(p.numel() for p in model.parameters())
    assert sum(c[1] for c in costs.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    larger = stage_costs(config, (192, 192))
    assert larger['mask_head'][2] > 2 * costs['mask_head'][2] and larger['vggish'] == costs['vggish']
    assert stage_costs(config, (96, 96)) == costs
