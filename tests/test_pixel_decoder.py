"The pixel decoder beyond its chapter: odd sizes, batches, dtypes, autocast, compilation, gradients."
import pytest
import torch
from torch.testing import assert_close

from ppqg_nb.pixel_decoder import DeformableAttention, PixelDecoder, deformable_attention, reference_points, sine_position

CHANNELS = (8, 16, 24, 40)
SIZES = {'square': ((32, 32), (16, 16), (8, 8), (4, 4)), 'odd': ((23, 29), (11, 15), (7, 5), (3, 1)),
         'flat': ((1, 40), (1, 20), (1, 10), (1, 5)), 'one cell': ((1, 1), (1, 1), (1, 1), (1, 1))}

sizes = pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)


def pyramid(sizes, batch=2, **kw): return [torch.randn(batch, c, *s, **kw) for c, s in zip(CHANNELS, sizes)]


def decoder(layers=2): return shaken(PixelDecoder(CHANNELS, hidden=64, layers=layers, ffn=96))


@torch.no_grad()
def shaken(model):
    "A model whose zero matrices are no longer zero, as after training."
    for p in model.parameters(): p.add_(torch.randn_like(p), alpha=.05)
    return model


def joined(out): return [out[0], *out[1]]


@pytest.mark.parametrize('hidden', (8, 32, 48, 256))
def test_any_width_of_one_small_frame(hidden):
    "One cell at V5 and few channels: each group of a group norm still has two numbers to compare."
    out = joined(PixelDecoder(CHANNELS, hidden, layers=0)(pyramid(SIZES['one cell'], batch=1)))
    assert all(m.isfinite().all() for m in out)


@sizes
@pytest.mark.parametrize('layers', (0, 1, 2))
def test_any_sizes(sizes, layers):
    features, scales = decoder(layers)(pyramid(sizes))
    assert features.shape == (2, 64, *sizes[0])
    assert [s.shape for s in scales] == [(2, 64, *s) for s in sizes[:0:-1]]
    assert all(m.isfinite().all() for m in joined((features, scales)))


@sizes
def test_batch_is_one_by_one(sizes):
    d, x = decoder().double(), pyramid(sizes, 3, dtype=torch.float64)
    for i in range(3):
        for m, one in zip(joined(d(x)), joined(d([v[i:i + 1] for v in x]))): assert_close(m[i:i + 1], one)


@pytest.mark.parametrize('layers', (0, 2))
def test_gradient_reaches_every_parameter_and_input(layers):
    d, x = decoder(layers), [v.requires_grad_() for v in pyramid(SIZES['odd'])]
    sum((m * torch.randn_like(m)).sum() for m in joined(d(x))).backward()
    assert [n for n, p in d.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(v.grad.any() for v in x)


def test_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    d = shaken(DeformableAttention(4, heads=2, levels=2, points=2)).double()
    shapes = [(2, 3), (3, 4)]
    places = reference_points(shapes, dtype=torch.float64)
    query, source = (torch.randn(1, 18, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda q, s: d(q[:, ::5], s, places[::5], shapes), (query, source))


@pytest.mark.parametrize('dtype, tolerance', ((torch.float64, 1e-5), (torch.bfloat16, .05), (torch.float16, .01)))
def test_dtypes_agree_with_float32(dtype, tolerance):
    d, x = decoder(), pyramid(SIZES['odd'])
    want, got = joined(d(x)), joined(d.to(dtype)([v.to(dtype) for v in x]))
    assert {m.dtype for m in got} == {dtype}
    for m, w in zip(got, want): assert (m.float() - w).norm() < tolerance * w.norm()


def test_autocast_agrees_with_float32():
    d, x = decoder(), pyramid(SIZES['square'])
    want = joined(d(x))
    with torch.autocast('cpu', torch.bfloat16): got = joined(d(x))
    for m, w in zip(got, want): assert (m.float() - w).norm() < .05 * w.norm()


def test_places_keep_their_precision_in_bfloat16():
    "On a map 600 cells wide, bfloat16 cannot tell neighbours apart; the place is read right all the same."
    shapes, ramp = [(1, 600)], torch.arange(600.).bfloat16()
    points = reference_points(shapes).view(1, 600, 1, 1, 1, 2)
    got = deformable_attention(ramp.view(1, 600, 1, 1), shapes, points, torch.ones(1, 600, 1, 1, 1).bfloat16())
    assert got.dtype == torch.bfloat16
    assert_close(got.flatten(), ramp)


@pytest.mark.parametrize('layers', (0, 2))
def test_compiles_without_a_break(layers):
    torch._dynamo.reset()
    d = decoder(layers).eval()
    compiled = torch.compile(d, fullgraph=True, backend='eager')
    with torch.no_grad():
        for size in ('odd', 'square'):
            x = pyramid(SIZES[size])
            for m, w in zip(joined(compiled(x)), joined(d(x))): assert_close(m, w)


def test_same_call_same_bits():
    d, x = decoder(), pyramid(SIZES['odd'])
    assert all(torch.equal(a, b) for a, b in zip(joined(d(x)), joined(d(x))))


def test_released_size():
    "The parameters of the pixel decoder with a Swin-B, as many as in the released checkpoints."
    with torch.device('meta'): d = PixelDecoder((128, 256, 512, 1024))
    assert sum(p.numel() for p in d.parameters()) == 5_544_384


def test_errors_are_sentences():
    with pytest.raises(ValueError, match='8 heads cannot share 36 channels'): PixelDecoder(CHANNELS, hidden=36)
    with pytest.raises(ValueError, match='even number'): sine_position(2, 2, 7)
