"""The released system as the tests know it: its key names, weights that depend on the key alone, and inputs.

Weights and inputs follow the recipe with which the golden numbers were computed (tests/golden/README.md).
"""
import re
import zlib

import numpy as np
import torch
import torch.nn.functional as F

HEAD, GENERATOR = 'sem_seg_head.predictor.', 'sem_seg_head.predictor.visual_query_block.'
PIXEL = 'sem_seg_head.pixel_decoder.'
TABLE = [(re.compile(ours), theirs) for ours, theirs in {       # the first pattern that matches the whole key
    r'vggish\.(.*)': r'audio_backbone.\1',
    r'audio\.(.*)': r'sem_seg_head.audio_transformation.embeddings.\1',
    r'pyramid\.gates\.(.*)': r'scale_factor_module.\1',
    r'pyramid\.(frames|regions)\.norms\.(\d)\.(.*)': r'\1.norm\2.\3',
    r'pyramid\.(frames|regions)\.backbone\.stages\.(.*)': r'\1.\2',
    r'pixel_decoder\.project\.(.*)': PIXEL + r'input_proj.\1',
    r'pixel_decoder\.encoder\.level': PIXEL + 'transformer.level_embed',
    r'pixel_decoder\.encoder\.layers\.(\d)\.attention\.(\w+)\.(.*)': PIXEL + r'transformer.encoder.layers.\1.self_attn.<\2>.\3',
    r'pixel_decoder\.encoder\.(.*)': PIXEL + r'transformer.encoder.\1',
    r'pixel_decoder\.lateral\.0\.(.*)': PIXEL + r'adapter_1.\1',
    r'pixel_decoder\.lateral\.1\.(.*)': PIXEL + r'adapter_1.norm.\1',
    r'pixel_decoder\.smooth\.0\.(.*)': PIXEL + r'layer_1.\1',
    r'pixel_decoder\.smooth\.1\.(.*)': PIXEL + r'layer_1.norm.\1',
    r'pixel_decoder\.mask_features\.(.*)': PIXEL + r'mask_features.\1',
    r'generator\.prototypes': GENERATOR + 'prototype.weight',
    r'generator\.aggregate\.mlp\.(\d)\.(.*)': GENERATOR + r'query_mixer.layers.<\1>.\2',
    r'generator\.embed\.(.*)': GENERATOR + r'pre_proj.\1',
    r'generator\.group\.out\.(.*)': GENERATOR + r'assign_attn.proj.\1',
    r'generator\.group\.(\w)\.(.*)': GENERATOR + r'assign_attn.\1_proj.\2',
    r'generator\.prompt\.norm\.(.*)': GENERATOR + r'pre_attn.norm.\1',
    r'generator\.prompt\.attention\.out\.(.*)': GENERATOR + r'pre_attn.multihead_attn.out_proj.\1',
    r'generator\.prompt\.attention\.(\w)\.(.*)': GENERATOR + r'pre_attn.multihead_attn.in_proj_\2 [\1]',
    r'generator\.scores\.scale': 'criterion.logit_scale',
    r'generator\.scores\.audio\.(.*)': HEAD + r'audio_proj.\1',
    r'generator\.scores\.prototype\.(.*)': HEAD + r'proto_proj.\1',
    r'decoder\.start': HEAD + 'query_feat.weight',
    r'decoder\.place': HEAD + 'query_embed.weight',
    r'decoder\.level': HEAD + 'level_embed.weight',
    r'decoder\.norm\.(.*)': HEAD + r'decoder_norm.\1',
    r'decoder\.layers\.(\d)\.(cross|among)\.out\.(.*)': HEAD + r'<\2>.\1.<\2 attention>.out_proj.\3',
    r'decoder\.layers\.(\d)\.(cross|among)\.(\w)\.(.*)': HEAD + r'<\2>.\1.<\2 attention>.in_proj_\4 [\3]',
    r'decoder\.layers\.(\d)\.norms\.0\.(.*)': HEAD + r'<cross>.\1.norm.\2',
    r'decoder\.layers\.(\d)\.norms\.1\.(.*)': HEAD + r'<among>.\1.norm.\2',
    r'decoder\.layers\.(\d)\.norms\.2\.(.*)': HEAD + r'transformer_ffn_layers.\1.norm.\2',
    r'decoder\.layers\.(\d)\.ffn\.0\.(.*)': HEAD + r'transformer_ffn_layers.\1.linear1.\2',
    r'decoder\.layers\.(\d)\.ffn\.2\.(.*)': HEAD + r'transformer_ffn_layers.\1.linear2.\2',
    r'mask_head\.embed\.(\d)\.(.*)': HEAD + r'mask_embed.layers.<\1>.\2',
    r'class_head\.(.*)': HEAD + r'class_embed.\1',
}.items()]
WORDS = {'<0>': '0', '<2>': '1', '<4>': '2', '<offsets>': 'sampling_offsets', '<weights>': 'attention_weights',
         '<value>': 'value_proj', '<out>': 'output_proj',
         '<cross>': 'transformer_cross_attention_layers', '<cross attention>': 'multihead_attn',
         '<among>': 'transformer_self_attention_layers', '<among attention>': 'self_attn'}


def released_key(ours):
    "The released key of one of our parameters, and which third of it ours is: 'q', 'k', 'v', or None for all of it."
    pattern, theirs = next((p, t) for p, t in TABLE if p.fullmatch(ours))
    key = pattern.sub(theirs, ours)
    for word, name in WORDS.items(): key = key.replace(word, name)
    if key.startswith(('frames.', 'regions.')):
        key = key.replace('frames.', 'backbone.', 1).replace('regions.', 'pre_sam_backbone.', 1)
        # timm puts the downsampling at the head of a stage, the released Swin at the end of the one before
        key = re.sub(r'layers_(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', key)
        key = re.sub(r'layers_(\d)', r'layers.\1', key)
    key, _, third = key.partition(' [')
    return key, third[:1] or None


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
