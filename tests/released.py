"""The released system as the tests know it: its key names, weights that depend on the key alone, and inputs.

Weights and inputs follow the recipe with which the golden numbers were computed (tests/golden/README.md).
"""
import zlib

import numpy as np
import torch
import torch.nn.functional as F

from ppqg_nb.checkpoints import released_key


def weight(key, shape):
    "The number that every element of a released parameter has in the golden runs: a function of key and shape."
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if key.endswith('logit_scale'): return torch.tensor(np.log(1/0.07), dtype=torch.float32)
    if x.ndim < 2: return torch.from_numpy(x*np.float32(0.1) + np.float32(key.endswith('.weight')))
    deviation = 1/np.sqrt(np.prod(shape[1:]))
    if key.endswith(('level_embed.weight', 'level_embed', 'relative_position_bias_table')): deviation = 0.5
    if key.endswith(('query_feat.weight', 'query_embed.weight', 'prototype.weight')): deviation = 2
    x = x*np.float32(deviation*(4 if '.class_embed.' in key else 1))
    if key.endswith('pixel_decoder.mask_features.weight'): x = x - x.mean(1, keepdims=True)
    return torch.from_numpy(x)


@torch.no_grad()
def fill(model):
    "Give a VCT of a released preset the weights of the golden runs; gives the released keys that were used."
    used = set()
    for name, p in model.named_parameters():
        key, third = released_key(name)
        used.add(key)
        if third is None: p.copy_(weight(key, p.shape))
        else: p.copy_(weight(key, (3*len(p), *p.shape[1:])).chunk(3)['qkv'.index(third)])
    return used


def inputs(task):
    "Frames, region maps (2, 3, 384, 384) uint8 and log-mel patches (2, 96, 64) of the golden runs."
    rng = np.random.default_rng(7)
    def blocks(n): return torch.from_numpy(rng.integers(0, 256, (2, 3, n, n), dtype=np.uint8))
    frames, regions = (x.repeat_interleave(384//x.shape[-1], -1).repeat_interleave(384//x.shape[-1], -2) for x in (blocks(24), blocks(12)))
    patches = (rng.standard_normal((10 if task == 'avss' else 2, 1, 96, 64))*2 - 2).astype(np.float32)
    return frames, regions, torch.from_numpy(patches[:2, 0])


def criterion_inputs(task, classes, sounds):
    "Ten predictions of five frames (logits, masks), the frames' label maps, and the features of sounds and prototypes."
    rng = np.random.default_rng(11)
    def normal(*shape): return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    layers = [(normal(5, 100, classes + 1), F.interpolate(normal(5, 100, 12, 12)*3, size=96, mode='bilinear')) for _ in range(10)]
    features = [F.normalize(normal(n, 256), dim=-1) for n in (5, sounds)] if sounds else None
    maps = []
    for _ in range(1 if task == 's4' else 5):
        labels = np.zeros((384, 384), np.int64)
        for c in ([5, 17, 42] if task == 'avss' else [1]):
            y, x = rng.integers(0, 192), rng.integers(0, 192)
            height, width = rng.integers(48, 192), rng.integers(48, 192)
            labels[y:y + height, x:x + width] = c
        maps.append(torch.from_numpy(labels))
    return layers, maps, features
