"The pyramid beyond its chapter: every family at odd sizes, gradients, compiled graphs, copies, users' mistakes."
import copy

import pytest
import timm
import torch

from ppqg_nb.core import Config
from ppqg_nb.pyramid import STRIDES, Backbone, Pyramid, normalize, pad_to, timm_stages

SWIN = 'swin_base_patch4_window12_384'
NARROW = dict(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
FAMILIES = {SWIN: NARROW, 'pvt_v2_b0': {}, 'resnet50': dict(zero_init_last=False), 'convnext_atto': {},
            'vit_small_patch16_dinov3': dict(depth=3), 'vit_tiny_patch16_224': dict(depth=3)}

each_family = pytest.mark.parametrize('name', FAMILIES)


def pyramid(name, **fields):
    return Pyramid(Config(backbone=name, image_size=128, backbone_options=FAMILIES[name], **fields)).eval()


def frames(*shape): return torch.randint(256, shape, dtype=torch.uint8)


@each_family
@torch.no_grad()
def test_odd_sizes(name):
    model = pyramid(name)
    for h, w in ((1, 1), (33, 64), (101, 139), (200, 333)):
        x = pad_to(normalize(frames(1, 3, h, w)))
        sides = [-(-n // 32) * 32 for n in (h, w)]
        assert [tuple(v.shape) for v in model(x)] == [
            (1, c, *(n // s for n in sides)) for c, s in zip(model.channels, STRIDES)]


@each_family
def test_gradient_reaches_every_parameter(name):
    model = pyramid(name, regions=True, pyramid_norm=True)
    for gate in model.gates: torch.nn.init.ones_(gate.fc1.bias)   # narrow gates can start with every ReLU shut
    x, y = (pad_to(normalize(frames(2, 3, 60, 90))) for _ in range(2))
    sum((v * torch.randn_like(v)).sum() for v in model(x, y)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_family
@torch.no_grad()
def test_batch_equals_one_by_one(name):
    model = pyramid(name, regions=True, pyramid_norm=True)
    x, y = (normalize(frames(3, 3, 64, 96)) for _ in range(2))
    for i in range(3):
        for a, b in zip(model(x, y), model(x[i:i + 1], y[i:i + 1])):
            torch.testing.assert_close(a[i], b[0], atol=1e-4, rtol=1e-4)


@each_family
@torch.no_grad()
def test_same_weights_at_every_image_size(name):
    "The size in the config is what a model is made for; it leaves no trace in the parameters."
    if name == 'vit_tiny_patch16_224': pytest.skip('a learned table of positions has a size')
    made = [Backbone(name, size, **FAMILIES[name]).eval() for size in (128, 384)]
    made[1].load_state_dict(made[0].state_dict())
    x = torch.randn(1, 3, 96, 160)
    for a, b in zip(*(m(x) for m in made)): assert torch.equal(a, b)


@pytest.mark.parametrize('name', [SWIN, 'convnext_atto', 'vit_small_patch16_dinov3'])
@torch.no_grad()
def test_one_graph(name):
    "Dynamo traces the whole path without a break, the check of the range included."
    model = pyramid(name, regions=True)
    def path(x, y): return model(pad_to(normalize(x)), pad_to(normalize(y)))
    torch._dynamo.reset()
    x, y = torch.rand(2, 1, 3, 50, 70)
    for a, b in zip(torch.compile(path, fullgraph=True, backend='eager')(x, y), path(x, y)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_swin_keeps_its_last_shift_and_nothing_leaks_round():
    model = Backbone(SWIN, 384, **NARROW).eval()
    plain, always = (timm.create_model(SWIN, features_only=True, img_size=384, always_partition=a, **NARROW).eval()
                     for a in (False, True))
    for m in (plain, always): m.load_state_dict({k.removeprefix('stages.'): v for k, v in model.state_dict().items()})
    x = torch.randn(1, 3, 384, 384)
    ours, theirs, wrong = model(x), always(x), plain(x)
    off = [[(a - b.permute(0, 3, 1, 2)).abs().max().item() for a, b in zip(ours, others)] for others in (theirs, wrong)]
    assert max(off[0] + off[1][:3]) < 1e-4 < .01 < off[1][3]        # sums are made in another order (fused attention)
    x = torch.randn(1, 3, 224, 320)
    y = x.clone()
    y[..., -32:, :] += 1
    top = [m(x)[0][0, :, 0] - m(y)[0][0, :, 0] for m in (model, copy.deepcopy(model))]
    assert not top[0].any() and not top[1].any()


@torch.no_grad()
def test_a_copy_stands_on_its_own_feet():
    model = Backbone(SWIN, 384, **NARROW).eval()
    x = torch.randn(1, 3, 64, 96)
    before, other = model(x), copy.deepcopy(model)
    for p in other.parameters(): p.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, model(x))) and not other(x)[3].any()


def test_options_win_over_ours():
    stages = timm_stages(SWIN, 384, **NARROW, always_partition=False)
    assert stages.layers_3.blocks[1].shift_size == (0, 0)


def test_dtypes_of_frames():
    x = frames(2, 3, 8, 8)
    for f, eps in ((x.double() / 255, 1e-5), (x.float() / 255, 1e-5), (x.half() / 255, .01), (x.bfloat16() / 255, .03)):
        y = normalize(f)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, normalize(x), atol=eps, rtol=0)
    assert normalize(x[:0]).shape == (0, 3, 8, 8)
    assert normalize(torch.empty(1, 3, 8, 8, device='meta')).is_meta


@pytest.mark.parametrize('wrong, words', [
    (lambda: normalize(torch.rand(3, 8, 8)), r'frames has shape'),
    (lambda: normalize(torch.rand(1, 8, 8, 3)), r'frames has shape'),
    (lambda: normalize(torch.rand(1, 3, 8, 8) * 255), r'divide by 255'),
    (lambda: normalize(normalize(torch.rand(1, 3, 64, 64))), r'leave the normalisation to the model'),
    (lambda: normalize(torch.full((1, 3, 8, 8), torch.nan)), r'from nan to nan'),
    (lambda: normalize(torch.ones(1, 3, 8, 8, dtype=torch.int64)), r'torch.int64'),
    (lambda: Backbone('swin_base'), r"no model 'swin_base'; did you mean swin"),
    (lambda: Backbone('qqqq'), r'did you mean resnet50\?'),
    (lambda: Backbone('convnext_atto')(torch.randn(1, 3, 64, 65)), r'64 × 65 pixels; multiples of 32'),
])
def test_mistakes_get_a_sentence(wrong, words):
    with pytest.raises(ValueError, match=words): wrong()
