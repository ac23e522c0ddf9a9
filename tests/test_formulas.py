"Each formula of the note, computed a second way: in loops, by hand, or by the property that defines it."
import math
from dataclasses import replace

import numpy as np, pytest, torch
import torch.nn.functional as F

from ppqg_nb.aggregation import Aggregation, PixelEmbedding, flatten
from ppqg_nb.audio import log_mel, log_mel_patches, mel_matrix, resample, stft_magnitude
from ppqg_nb.core import PRESETS, Config
from ppqg_nb.decoder import Decoder, DecoderLayer, attention_mask
from ppqg_nb.grouping import Grouping, hard
from ppqg_nb.losses import class_loss, criterion, mask_losses
from ppqg_nb.masks import MaskHead, class_probabilities, compose, upsample
from ppqg_nb.prototypes import PrototypePrompt, PrototypeScores, pac_loss, pool_audio, prototype_table
from ppqg_nb.pyramid import Backbone
from ppqg_nb.queries import visual_contrast
from ppqg_nb.vct import VCT
from ppqg_nb.vggish import VGGish, audio_tokens

C, N, K, Q = 8, 5, 3, 12        # channels, queries, classes, pixels (3 × 4)


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


def rand(*shape): return torch.randn(*shape, dtype=torch.float64)


def close(a, b, atol=1e-9): torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=atol)


def softmax(x, axis=-1): return (e := np.exp(x - x.max(axis, keepdims=True))) / e.sum(axis, keepdims=True)


def small(**changes):
    "A `VCT` of few channels, in eval mode"
    fields = dict(image_size=32, backbone='test_resnet', hidden=16, pixel_mlp=(16,), pixel_layers=1, pixel_ffn=16, num_queries=4,
                  layers=2, heads=2, ffn=16, vggish_width=.1, levels=('audio', 'V4'))
    return VCT(replace(PRESETS['scenes-tiny'], **{**fields, **changes})).eval()


def test_eq_task():
    model = small()
    maps = model.compose(model(torch.rand(3, 3, 40, 50), torch.randn(3, 96, 64)), size=(40, 50))
    assert maps.shape == (3, len(model.config.classes), 40, 50)         # T, K, H, W


def test_eq_resample():
    rate, f = 44100, 1000
    tone = torch.sin(2 * torch.pi * f * torch.arange(rate // 2).double() / rate)
    x = resample(tone, rate)
    assert len(x) == 8000
    close(x[200:7800], torch.sin(2 * torch.pi * f * torch.arange(8000).double() / 16000)[200:7800], 2e-3)


def test_eq_stft():
    x = rand(1000)
    n, f = np.arange(400), np.arange(257)[:, None]
    w = .5 - .5 * np.cos(2 * np.pi * n / 400)
    wanted = [abs((x.numpy()[160 * t:160 * t + 400] * w * np.exp(-2j * np.pi * f * n / 512)).sum(1)) for t in range(4)]
    close(stft_magnitude(x), np.stack(wanted))


def test_eq_mel():
    mel = lambda f: 1127 * math.log1p(f / 700)
    edges = np.linspace(mel(125), mel(7500), 66)
    def weight(f, m):
        a, b, c = edges[m:m + 3]
        return max(0, min((mel(f) - a) / (b - a), (c - mel(f)) / (c - b)))
    close(mel_matrix(), [[weight(31.25 * k, m) if k else 0 for m in range(64)] for k in range(257)])


def test_eq_logmel():
    x = rand(800).clamp(-1, 1)
    close(log_mel(x), np.log(stft_magnitude(x).numpy() @ mel_matrix().numpy() + .01))
    close(log_mel(torch.zeros(400).double()), np.full((1, 64), math.log(.01)))


def test_eq_patches():
    for seconds, patches in ((.96, 0), (5, 5), (10, 10)):
        assert log_mel_patches(torch.zeros(int(seconds * 16000)), 16000).shape == (patches, 96, 64)
    x = torch.randn(80000).clamp(-1, 1)
    close(log_mel_patches(x, 16000), log_mel(x.double())[:480].unflatten(0, (5, 96)).float(), 1e-5)


def test_eq_vggish():
    net = VGGish()
    shapes = []
    for layer in net.features:
        if isinstance(layer, torch.nn.MaxPool2d): layer.register_forward_hook(lambda _, i, y: shapes.append(tuple(y.shape[1:])))
    net(torch.randn(1, 96, 64))
    assert shapes == [(64, 48, 32), (128, 24, 16), (256, 12, 8), (512, 6, 4)]
    assert sum(p.numel() for p in net.parameters()) == sum(9 * a * b + b for a, b in zip(
        (1, 64, 128, 256, 256, 512), (64, 128, 256, 256, 512, 512)))


def test_eq_audio_tokens():
    x = rand(2, C, 6, 4)
    A = audio_tokens(x)
    assert A.shape == (2, 24, C)
    for i in range(6):
        for j in range(4): assert torch.equal(A[:, 4 * i + j], x[:, :, i, j])


def test_eq_pyramid():
    maps = Backbone('test_resnet', 64)(torch.rand(1, 3, 64, 96))
    assert [m.shape[-2:] for m in maps] == [(64 // 2**i, 96 // 2**i) for i in (2, 3, 4, 5)]


def test_eq_vh():
    net, x = PixelEmbedding(C).double(), rand(1, C, 3, 4)
    a, b, c = (net[i].weight.detach().numpy() for i in (0, 2, 4))
    one = lambda w, v: np.einsum('oc,chw->ohw', w[:, :, 0, 0], v)
    bias = lambda i: net[i].bias.detach().numpy()[:, None, None]
    v = np.pad(np.maximum(one(a, x[0].numpy()) + bias(0), 0), ((0, 0), (1, 1), (1, 1)))
    v = sum(np.einsum('oc,chw->ohw', b[:, :, d, e], v[:, d:d + 3, e:e + 4]) for d in range(3) for e in range(3)) + bias(2)
    close(net(x)[0].detach(), one(c, np.maximum(v, 0)) + bias(4))


def test_eq_flatten():
    V_h = rand(1, C, 3, 4)
    for i in range(1, 4):
        for j in range(1, 5): assert torch.equal(flatten(V_h)[..., (i - 1) * 4 + j - 1], V_h[..., i - 1, j - 1])


def test_eq_ve():
    net, V_h = Aggregation(4, N, (6,)).double(), rand(1, C, 4, 4)
    (W1, b1, W2, b2) = [p.detach().numpy() for p in net.parameters()]
    rows = V_h.numpy().reshape(C, 16)
    close(net(V_h)[0].detach(), (np.maximum(rows @ W1.T + b1, 0) @ W2.T + b2).T)
    assert net(V_h).shape == (1, N, C)


def test_eq_audio_pool():
    tokens = rand(2, 24, C)
    close(pool_audio(tokens), [[sum(t[s][c] for s in range(24)) / 24 for c in range(C)] for t in tokens.tolist()])


def test_eq_prototypes():
    P = prototype_table(K, C)
    assert P.shape == (K, C) and P.requires_grad and P.dtype == torch.float32


def test_eq_pac_scores():
    a, P = rand(2, C), rand(K, C)
    dot = lambda x, y: sum(u * v for u, v in zip(x, y))
    close(PrototypeScores(C)(a, P), [[dot(x, p) for p in P.tolist()] for x in a.tolist()])
    released = PrototypeScores(C, projection=True).double()
    u, v = released.audio(a), released.prototype(P)
    close(released(a, P).detach(), F.cosine_similarity(u[:, None], v[None], dim=-1).detach() / .07, 1e-6)


def test_eq_pac_loss():
    m, y = rand(2, K), (rand(2, K) > 0).double()
    sigma = lambda x: 1 / (1 + math.exp(-x))
    terms = [-t * math.log(sigma(s)) - (1 - t) * math.log(1 - sigma(s)) for s, t in zip(m.flatten().tolist(), y.flatten().tolist())]
    close(pac_loss(m, y), sum(terms) / (2 * K))


def test_eq_prompt():
    net, V_e, P = PrototypePrompt(C).double(), rand(1, N, C), rand(K, C)
    W_q, W_k, W_v = (getattr(net.attention, x).weight.detach().numpy().T for x in 'qkv')
    e, p = V_e[0].numpy(), P.numpy()
    close(net(V_e, P)[0].detach(), e + softmax((e @ W_q) @ (p @ W_k).T / C**.5) @ (p @ W_v))


def test_eq_assign():
    net, V_e, V_h = Grouping(C).double().eval(), rand(1, N, C), rand(1, Q, C)
    W_q, W_k = net.q.weight.detach().numpy().T, net.k.weight.detach().numpy().T
    R = net.assign(V_e, V_h)[0].detach()
    close(R, softmax((V_e[0].numpy() @ W_q) @ (V_h[0].numpy() @ W_k).T / C**.5, axis=0))
    close(R.sum(0), np.ones(Q))                                         # each pixel is dealt out once
    assert not torch.equal(R, net.train().assign(V_e, V_h)[0])          # G, in training only


def test_eq_hard():
    R = rand(1, N, Q).softmax(1).requires_grad_()
    found = hard(R)
    for j, column in enumerate(R[0].T.tolist()):
        assert found[0, :, j].tolist() == [float(n == column.index(max(column))) for n in range(N)]
    w = rand(1, N, Q)
    (found * w).sum().backward()
    close(R.grad, w)                                                    # the gradient goes straight through


def test_eq_queries():
    net, V_e, V_h = Grouping(C).double().eval(), rand(1, N, C), rand(1, Q, C)
    V_q, R = net(V_e, V_h)
    values, wanted = net.v(V_h)[0], []
    for n in range(N):
        own = [j for j in range(Q) if R[0, n, j] == 1]
        wanted.append(V_e[0, n] + net.out(sum((values[j] for j in own), torch.zeros(C).double()) / (len(own) + 1)))
    close(V_q[0].detach(), torch.stack(wanted).detach())


def test_eq_visual_contrast():
    V_e, P = rand(1, N, C), rand(K, C)
    dots = V_e[0].numpy() @ P.numpy().T                                 # N × K
    close(visual_contrast(V_e, P)[0], [max(dots[:, k]) for k in range(K)])


def test_eq_decoder():
    allowed = attention_mask(torch.tensor([[[[-1., 2.]], [[-1., -2.]]]]))
    assert allowed[0, 0].tolist() == [[False, True], [True, True]]      # a row without any cell sees all
    net = Decoder(C, N, ('audio', 'V5', 'V4', 'V3'), layers=9, heads=2, ffn=16).eval()
    maps = {name: torch.randn(1, C, 2, 2) for name in net.order}
    masked = []
    out = net(torch.randn(1, N, C), maps, lambda q, name: masked.append(name) or torch.randn(1, N, 2, 2))
    assert len(out) == 10 and masked == ['V5', 'V4', 'V3'] * 2          # none on the sound
    layer = DecoderLayer(C, 2, 16).double()
    x, place, source, position = rand(1, N, C), rand(N, C), rand(1, 4, C), rand(4, C)
    y = layer.norms[0](x + layer.cross(x + place, source + position, source))
    y = layer.norms[1](y + layer.among(y + place, y + place, y))
    close(layer(x, place, source, position).detach(), layer.norms[2](y + layer.ffn(y)).detach())


def test_eq_mask_logits():
    net, V_q, V_h = MaskHead(C).double(), rand(1, N, C), rand(1, C, 3, 4)
    W_proj = net.embed.weight.detach().numpy()
    close(net(V_q, V_h)[0].flatten(1).detach(), V_q[0].numpy() @ (V_h[0].numpy().reshape(C, Q).T @ W_proj).T)


def test_eq_upsample():
    z = rand(1, 1, 2, 2)
    (a, b), (c, d) = z[0, 0].tolist()
    u = [0, .25, .75, 1]                                                # of the second row or column, at twice the size
    close(upsample(z, (4, 4))[0, 0], [[(1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d) for x in u] for y in u])


def test_eq_class():
    logits = rand(1, N, K + 1)
    close(class_probabilities(logits), softmax(logits.numpy())[..., :K])


def test_eq_compose():
    p, M = rand(1, N, K).sigmoid(), rand(1, N, 3, 4).sigmoid()
    wanted = [[[sum(p[0, n, k] * M[0, n, i, j] for n in range(N)) for j in range(4)] for i in range(3)] for k in range(K)]
    close(compose(p, M)[0], wanted)


def test_eq_loss_cls():
    logits, c = rand(1, N, K + 1), [0, 3, 3, 1, 2]                      # 3: no object
    p, w = softmax(logits[0].numpy()), [.1 if k == 3 else 1 for k in c]
    close(class_loss(logits, torch.tensor([c])), -sum(w[n] * math.log(p[n, c[n]]) for n in range(N)) / sum(w))


def test_eq_loss_mask():
    z, y = rand(2, 3, 4), (rand(2, 3, 4) > 0).double()
    bce, dice = mask_losses(z, y, replace(Config(), points=0))
    p, t = 1 / (1 + np.exp(-z.numpy())), y.numpy()
    close(bce, -sum((t * np.log(p) + (1 - t) * np.log(1 - p)).mean((1, 2))))
    close(dice, sum(1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)))


def test_eq_loss():
    model = small()
    pred = model(torch.rand(1, 3, 32, 32), torch.randn(1, 96, 64))
    target = dict(labels=torch.tensor([2]), masks=torch.ones(1, 32, 32, dtype=torch.bool))
    loss, parts = criterion(pred, [target], model.config)
    ce, bce, dice, pac = model.config.weights
    layers = [ce * parts[f'cls_{l}'] + bce * parts[f'bce_{l}'] + dice * parts[f'dice_{l}'] for l in range(model.config.layers + 1)]
    close(loss.detach(), (sum(layers) + pac * parts['pac']).detach(), 1e-5)
