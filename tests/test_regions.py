"Region maps: drawn by the rule, from masks of every origin, and bad masks refused in a sentence."
import io
import json
import pickle
import shutil
import socket
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ppqg_nb.core import example_clip
from ppqg_nb.regions import PALETTE, ClassicRegions, FolderRegions, SamRegions, make_regions, partition_map, region_map

SIZE = 24, 30
FRAME = torch.zeros(3, *SIZE, dtype=torch.uint8)


def rows(picture): return picture.permute(1, 2, 0).numpy()


def slowly(masks):
    "Pixel by pixel: the smallest mask that is there, the first of equal ones; its colour is that of its rank."
    masks = [np.asarray(m) for m in masks]
    order = sorted((k for k in range(len(masks)) if masks[k].any()), key=lambda k: (int(masks[k].sum()), k))
    out = np.zeros((*masks[0].shape, 3), np.uint8)
    for y, x in np.ndindex(masks[0].shape):
        inside = [n for n, k in enumerate(order) if masks[k][y, x]]
        out[y, x] = PALETTE[1 + inside[0] % 149] if inside else (120, 120, 120)
    return out


def test_palette():
    assert PALETTE.shape == (150, 3) and PALETTE.dtype == np.uint8
    assert [tuple(c) for c in PALETTE[:5]] == [(120, 120, 120), (180, 120, 120), (6, 230, 230), (80, 50, 50), (4, 200, 3)]
    assert [tuple(PALETTE[k]) for k in (12, 46, 100, 133, 149)] == [(150, 5, 61), (160, 150, 20), (143, 255, 0), (0, 153, 255), (92, 0, 255)]
    assert len(np.unique(PALETTE, axis=0)) == 149 and tuple(PALETTE[6]) == tuple(PALETTE[48]) and PALETTE.sum() == 58427


def test_by_hand():
    "A row of five pixels: a large mask, a small one on it, and one pixel of ground."
    masks = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 1, 0, 0]]).bool()[:, None]
    assert rows(region_map(masks))[0].tolist() == [[80, 50, 50], [180, 120, 120], [6, 230, 230], [80, 50, 50], [120, 120, 120]]


@pytest.mark.parametrize('count', [1, 2, 9, 160])
@pytest.mark.parametrize('share', [.01, .1, .5, .95])
def test_against_a_loop(count, share):
    masks = torch.rand(count, 9, 11) < share
    picture = region_map(masks)
    assert picture.shape == (3, 9, 11) and picture.dtype == torch.uint8 and picture.is_contiguous()
    assert np.array_equal(rows(picture), slowly(masks))


def test_order_matters_for_equal_areas_only():
    masks = torch.rand(12, 400).argsort(1).argsort(1).view(12, 20, 20) < torch.arange(20, 380, 30)[:, None, None]
    assert masks.sum((1, 2)).unique().numel() == 12
    for _ in range(5): assert torch.equal(region_map(masks[torch.randperm(12)]), region_map(masks))
    two = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()[:, None]
    for pair in (two, two.flip(0)):
        assert [tuple(c) for c in rows(region_map(pair))[pair[0]]] == [tuple(PALETTE[1])] * 2


def test_masks_of_no_pixels_and_no_masks():
    masks = torch.rand(3, *SIZE) < .3
    empty = torch.zeros(2, *SIZE, dtype=torch.bool)
    assert torch.equal(region_map(torch.cat([empty, masks])), region_map(masks))
    for none in (empty, empty[:0]): assert (region_map(none) == 120).all()


def test_colours_begin_again_without_the_ground():
    nested = torch.arange(400)[None, :] <= torch.arange(400)[:, None]
    picture = rows(region_map(nested[:, None]))[0]
    assert np.array_equal(picture, PALETTE[1:][np.arange(400) % 149]) and not (picture == 120).all(1).any()


def test_kinds_of_input():
    masks = torch.rand(4, *SIZE) < .3
    for same in (masks.numpy(), list(masks.numpy()), masks.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(region_map(same), region_map(masks))
    before = masks.clone()
    region_map(masks).zero_()
    assert torch.equal(masks, before)


@pytest.mark.parametrize('masks, words', [
    (torch.zeros(4, 5).bool(), r'masks has shape \(4, 5\).*\[None\]'), (torch.zeros(1, 1, 4, 5).bool(), r'must be \(M, H, W\)'),
    ([], r'masks has shape \(0,\)'), (torch.zeros(2, 4, 5), 'torch.float32; give bool'),
    (torch.zeros(2, 4, 5, dtype=torch.uint8), 'masks > 0')], ids=['one', 'batch', 'list', 'float', 'uint8'])
def test_what_is_no_stack_of_masks(masks, words):
    with pytest.raises(ValueError, match=words): region_map(masks)


@pytest.mark.parametrize('kinds', [1, 2, 40, 500])
def test_partition_is_a_stack_of_masks(kinds):
    labels = torch.randint(kinds, (15, 21)) * 2 + 1         # not every number is there
    masks = torch.stack([labels == k for k in range(2 * kinds + 1)])
    assert torch.equal(partition_map(labels.numpy()), region_map(masks))


# From a folder

@pytest.fixture
def masks(): return torch.rand(5, *SIZE) < torch.tensor([.5, .2, .8, .05, .3])[:, None, None]


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(array))
    picture.save(path, **options)
    return path


def palette_png(path, masks):
    "A map as it is published: ranks, with the palette of 150 colours."
    found = (rows(region_map(masks))[:, :, None] == PALETTE[:48]).all(-1).argmax(-1).astype(np.uint8)
    picture = Image.fromarray(found)
    picture.putpalette(PALETTE.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.mark.parametrize('form', ['map', 'palette', 'published', 'array', 'masks', 'ones', 'bits'])
@pytest.mark.parametrize('name', ['000012', 'clip/3', 'a.b/c.d', 'x y', 'ё/дом'])
def test_forms_of_a_folder(tmp_path, masks, form, name):
    where, wanted = tmp_path/name, region_map(masks)
    where.parent.mkdir(parents=True, exist_ok=True)
    if form == 'map': save(tmp_path/f'{name}.png', rows(wanted))
    if form == 'palette': palette_png(tmp_path/f'{name}.png', masks)
    if form == 'published': palette_png(tmp_path/f'{name}_mask_color.png', masks)
    if form == 'array': np.savez_compressed(tmp_path/f'{name}.npz', masks=masks.numpy())
    if form in ('masks', 'ones', 'bits'):
        scale = dict(masks=np.uint8(255), ones=np.uint8(1), bits=np.bool_(True))[form]
        for k, m in enumerate(masks.numpy()): save(where/f'{k}.png', m * scale)
    for folder in (tmp_path, str(tmp_path)):
        found = FolderRegions(folder)(FRAME, name)
        assert torch.equal(found, wanted) and found.dtype == torch.uint8 and found.is_contiguous()


def test_a_map_goes_before_masks(tmp_path, masks):
    save(tmp_path/'a'/'0.png', np.full(SIZE, 255, np.uint8))
    assert torch.equal(FolderRegions(tmp_path)(FRAME, 'a'), region_map(torch.ones(1, *SIZE, dtype=torch.bool)))
    np.savez_compressed(tmp_path/'a.npz', masks=masks.numpy())
    assert torch.equal(FolderRegions(tmp_path)(FRAME, 'a'), region_map(masks))
    save(tmp_path/'a_mask_color.png', np.full((*SIZE, 3), 7, np.uint8))
    assert (FolderRegions(tmp_path)(FRAME, 'a') == 7).all()
    save(tmp_path/'a.png', np.full((*SIZE, 3), 9, np.uint8))
    assert (FolderRegions(tmp_path)(FRAME, 'a') == 9).all()


def test_masks_of_a_folder_are_numbered(tmp_path):
    "Of equal areas the first is on top, and 2.png comes before 10.png; what is no PNG is left alone."
    masks = np.zeros((12, 1, 13), bool)
    for k in range(12): masks[k, 0, k:k + 2] = True
    for k, m in enumerate(masks): save(tmp_path/'a'/f'{k}.png', m)
    (tmp_path/'a'/'metadata.csv').write_text('id,area')
    assert torch.equal(FolderRegions(tmp_path)(torch.zeros(3, 1, 13, dtype=torch.uint8), 'a'), region_map(masks))


def test_missing_map(tmp_path):
    for name in ('a', 'b/3'):
        with pytest.raises(FileNotFoundError) as error: FolderRegions(tmp_path)(FRAME, name)
        for looked in (f'{name}.png', f'{name}_mask_color.png', f'{name}.npz', f'folder {name}', str(tmp_path)): assert looked in str(error.value)
    with pytest.raises(FileNotFoundError, match='There is no folder'): FolderRegions(tmp_path/'none')
    (tmp_path/'a').mkdir()
    with pytest.raises(ValueError, match='holds no PNG'): FolderRegions(tmp_path)(FRAME, 'a')


@pytest.mark.parametrize('name', ['..', '../a', 'b/../../a', '/a', 'b//a', './a', 'a/', '', '..\\a', '\\a', 'C:a', 'C:\\a'])
def test_names_stay_in_the_folder(tmp_path, masks, name):
    (tmp_path/'in'/'b').mkdir(parents=True)
    save(tmp_path/'a.png', rows(region_map(masks)))
    with pytest.raises(ValueError, match='no name of a frame'): FolderRegions(tmp_path/'in')(FRAME, name)


@pytest.mark.parametrize('size', [(48, 60), (24, 31), (30, 24), (1, 1)], ids=str)
@pytest.mark.parametrize('form', ['map', 'array', 'masks'])
def test_another_size_than_the_frame(tmp_path, form, size):
    "Also where the shape is the same: nobody knows whether it was of that frame."
    if form == 'map': save(tmp_path/'a.png', np.zeros((*size, 3), np.uint8))
    if form == 'array': np.savez(tmp_path/'a.npz', masks=np.zeros((2, *size), bool))
    if form == 'masks': save(tmp_path/'a'/'0.png', np.zeros(size, np.uint8))
    with pytest.raises(ValueError, match=f'{size[1]} × {size[0]} pixels, and its frame 30 × 24'): FolderRegions(tmp_path)(FRAME, 'a')


def broken_png(kind):
    buffer = io.BytesIO()
    noise = torch.randint(256, (*SIZE, 3), dtype=torch.uint8).numpy()
    picture = dict(grey=Image.fromarray(noise[..., 0]), alpha=Image.fromarray(noise).convert('RGBA')).get(kind, Image.fromarray(noise))
    picture.save(buffer, 'JPEG' if kind == 'jpeg' else 'PNG')
    data = buffer.getvalue()
    return dict(empty=b'', text=b'no picture', cut=data[:len(data) // 2], flipped=data[:60] + bytes(b ^ 255 for b in data[60:])).get(kind, data)


@pytest.mark.parametrize('kind, words', [('empty', 'no PNG'), ('text', 'no PNG'), ('cut', 'no PNG'), ('flipped', 'no PNG'),
    ('jpeg', 'JPEG would change the colours'), ('grey', 'mode L; it must be one of RGB, P'), ('alpha', 'mode RGBA')])
def test_files_that_are_no_maps(tmp_path, kind, words):
    (tmp_path/'a.png').write_bytes(broken_png(kind))
    with pytest.raises(ValueError, match=words): FolderRegions(tmp_path)(FRAME, 'a')


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path):
    "A PNG whose head promises more pixels than memory holds."
    data = bytearray(broken_png('colour'))
    import struct, zlib
    data[16:24] = struct.pack('>II', 200_000, 200_000)
    data[29:33] = struct.pack('>I', zlib.crc32(bytes(data[12:29])))
    (tmp_path/'a.png').write_bytes(bytes(data))
    with pytest.raises(ValueError, match='claims more pixels'): FolderRegions(tmp_path)(FRAME, 'a')


@pytest.mark.parametrize('mask, words', [
    (np.arange(720, dtype=np.uint8).reshape(SIZE) % 3, '3 values; a mask has two'),
    (np.arange(720, dtype=np.uint8).reshape(SIZE) % 2 + 1, '2 values; a mask has two'),
    (np.zeros((*SIZE, 3), np.uint8), 'mode RGB; it must be one of 1, L, P')], ids=['three', 'no nought', 'colour'])
def test_files_that_are_no_masks(tmp_path, mask, words):
    save(tmp_path/'a'/'0.png', mask)
    with pytest.raises(ValueError, match=words): FolderRegions(tmp_path)(FRAME, 'a')


class Bomb:
    def __reduce__(self): return exec, ("import builtins; builtins.exploded = True",)


@pytest.mark.parametrize('kind', ['float', 'flat', 'other', 'pickled', 'text', 'cut', 'npy', 'huge'])
def test_arrays_that_are_no_masks(tmp_path, kind):
    path, good = tmp_path/'a.npz', np.zeros((2, *SIZE), bool)
    if kind == 'text': path.write_text('no array')
    elif kind == 'npy': np.save(tmp_path/'a.npy', good); (tmp_path/'a.npy').rename(path)
    elif kind == 'huge':
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, dict(descr='|b1', fortran_order=False, shape=(2**20, 2**20, 2**10)))
        with zipfile.ZipFile(path, 'w') as z: z.writestr('masks.npy', head.getvalue())
    else:
        arrays = dict(float=good.astype(float), flat=good[0], pickled=np.array([Bomb()]))
        np.savez(path, **{'other' if kind == 'other' else 'masks': arrays.get(kind, good)})
        if kind == 'cut': path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'must be bool, \(M, H, W\)' if kind in ('float', 'flat') else "no array 'masks'"):
        FolderRegions(tmp_path)(FRAME, 'a')
    import builtins
    assert not hasattr(builtins, 'exploded')


# Without a model

@pytest.mark.parametrize('size', [(1, 1), (1, 50), (50, 1), (33, 35), (240, 320), (400, 300), (720, 1280)], ids=str)
def test_classic_regions_of_any_size(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    image[0, :, :(size[1] + 1) // 2] = 250                  # two halves
    before, picture = image.clone(), ClassicRegions()(image)
    assert picture.shape == image.shape and picture.dtype == torch.uint8 and torch.equal(image, before)
    assert not (picture == 120).all(0).any() and torch.equal(picture, ClassicRegions()(image, 'a name'))
    if min(size) > 30:                                      # narrow strips on the blurred border, and two regions
        left, right = (set(map(tuple, rows(picture)[:, x].reshape(-1, 3).tolist())) for x in (slice(size[1] // 4), slice(-size[1] // 4, None)))
        assert len(left) == len(right) == 1 and left != right


def test_parameters_of_classic_regions():
    frame = example_clip().frames[4]
    def count(**options): return len(np.unique(rows(ClassicRegions(**options)(frame)).reshape(-1, 3), axis=0))
    counts = [count(scale=s) for s in (50, 200, 800, 5000)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 2 * counts[2] > 2
    assert count(least=.1) <= 10 and count(scale=1e6, least=.4) <= 2
    noise = torch.randint(256, (3, 60, 80), dtype=torch.uint8)
    assert len(np.unique(rows(ClassicRegions(scale=1, least=.02)(noise)).reshape(-1, 3), axis=0)) <= 50


def test_a_large_film_has_the_regions_of_a_small_one():
    frame = example_clip().frames[4].repeat_interleave(4, 1).repeat_interleave(4, 2)
    counts = [len(np.unique(rows(ClassicRegions()(f)).reshape(-1, 3), axis=0)) for f in (frame, frame[:, ::4, ::4])]
    assert abs(counts[0] - counts[1]) < .3 * counts[1]


@pytest.mark.parametrize('image, words', [(FRAME.float(), 'torch.float32; give RGB as uint8'), (FRAME[None], 'image has shape'),
                                          (FRAME[:1], 'must be \\(3, H, W\\)')], ids=['float', 'batch', 'grey'])
def test_what_is_no_image(tmp_path, image, words):
    for maker in (ClassicRegions(), FolderRegions(tmp_path)):
        with pytest.raises(ValueError, match=words): maker(image, 'a')


def test_makers_go_to_other_processes(tmp_path, masks):
    "As workers of a data loader need it."
    save(tmp_path/'a.png', rows(region_map(masks)))
    for maker in (ClassicRegions(scale=99), FolderRegions(tmp_path)):
        assert torch.equal(pickle.loads(pickle.dumps(maker))(FRAME, 'a'), maker(FRAME, 'a'))


# From a model of the SAM family, with random weights: the masks mean nothing, the way to them is the real one

def sam(path):
    t = pytest.importorskip('transformers')
    common = dict(hidden_size=32, image_size=64, patch_size=8)
    config = t.SamConfig(
        vision_config=t.SamVisionConfig(num_hidden_layers=2, num_attention_heads=2, output_channels=32, mlp_dim=64, window_size=4,
                                        global_attn_indexes=[1], num_pos_feats=16, **common),
        prompt_encoder_config=t.SamPromptEncoderConfig(mask_input_channels=4, **common),
        mask_decoder_config=t.SamMaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=2, num_hidden_layers=1,
                                                   iou_head_hidden_dim=32))
    t.SamModel(config).save_pretrained(path)
    t.SamImageProcessor(size=dict(longest_edge=64), pad_size=dict(height=64, width=64), mask_size=dict(longest_edge=16),
                        mask_pad_size=dict(height=16, width=16)).save_pretrained(path)


def sam2(path):
    t = pytest.importorskip('transformers')
    hiera = t.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8], window_positional_embedding_background_size=[4, 4],
        window_size_per_stage=[8, 4, 8, 4], global_attention_blocks=[3])
    config = t.Sam2Config(
        vision_config=t.Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=[64, 32, 16, 8],
                                         backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=32),
        prompt_encoder_config=t.Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16),
        mask_decoder_config=t.Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2,
                                                    iou_head_hidden_dim=32))
    t.Sam2Model(config).save_pretrained(path)
    t.Sam2ImageProcessor(size=dict(height=64, width=64), mask_size=dict(height=16, width=16)).save_pretrained(path)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    sam(folder/'sam')
    sam2(folder/'sam2')
    return folder


@pytest.fixture
def offline(monkeypatch):
    "Any step to the network fails."
    def refuse(*args, **options): raise OSError('There is no network.')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


ANY = dict(points_per_crop=6, pred_iou_thresh=-99, stability_score_thresh=-99)


@pytest.mark.parametrize('name', ['sam', 'sam2'])
def test_sam(models, offline, name):
    maker, image = SamRegions(models/name, **ANY), torch.randint(256, (3, 40, 56), dtype=torch.uint8)
    picture = maker(image, 'a name')
    assert picture.shape == image.shape and picture.dtype == torch.uint8 and torch.equal(picture, maker(image))
    found = maker.generate(Image.fromarray(rows(image).copy()), **ANY)['masks']
    assert len(found) > 0 and torch.equal(picture, region_map(torch.stack([torch.as_tensor(m) for m in found])))
    assert not (picture == 120).all()


def test_sam_that_finds_nothing(models):
    "Random weights do not rate their masks highly: with the usual thresholds all is ground."
    assert (SamRegions(models/'sam', points_per_crop=4)(FRAME) == 120).all()


def test_settings_reach_the_model(models):
    maker, asked = SamRegions(models/'sam', points_per_crop=3, points_per_batch=4, **{k: -99 for k in ('pred_iou_thresh', 'stability_score_thresh')}), []
    forward = maker.generate.model.forward
    maker.generate.model.forward = lambda *args, **kw: (asked.append(kw['input_points'].shape[1]), forward(*args, **kw))[1]
    maker(FRAME)
    assert asked == [4, 4, 1]
    with pytest.raises(TypeError): SamRegions(models/'sam', points=3)


@pytest.fixture
def damaged(models, tmp_path): return shutil.copytree(models/'sam', tmp_path/'model')


def config(folder, **changes):
    path = folder/'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_models_that_cannot_be_loaded(damaged, offline):
    from safetensors.torch import load_file, save_file
    weights = load_file(damaged/'model.safetensors')
    def refused(words, error=ValueError):
        with pytest.raises(error, match=words) as e: SamRegions(damaged)
        assert '\n' not in str(e.value) and str(damaged) in str(e.value)
    dropped = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != dropped}, damaged/'model.safetensors', dict(format='pt'))
    refused(f'lacks 1 tensors of its model, e.g. {dropped}')
    save_file(weights | {dropped: torch.zeros(7, 7, 7)}, damaged/'model.safetensors', dict(format='pt'))
    refused('cannot be loaded')
    (damaged/'model.safetensors').write_bytes(b'no tensors')
    refused('cannot be loaded')
    (damaged/'model.safetensors').unlink()
    torch.save(weights, damaged/'pytorch_model.bin')
    refused('safetensors')                                  # pickled weights are not read
    config(damaged, model_type='bert')
    refused('SAM family')
    (damaged/'config.json').write_text('no JSON')
    refused('cannot be loaded')
    (damaged/'config.json').unlink()
    refused('cannot be loaded')


def test_code_of_a_model_is_not_run(damaged):
    (damaged/'code.py').write_text('import builtins\nbuiltins.exploded = True\nclass Config: pass\nclass Model: pass\n')
    config(damaged, model_type='mine', auto_map=dict(AutoConfig='code.Config', AutoModelForMaskGeneration='code.Model'))
    with pytest.raises(ValueError, match='cannot be loaded'): SamRegions(damaged)
    import builtins
    assert not hasattr(builtins, 'exploded')


@pytest.mark.parametrize('name', ['', './nowhere', '../a/b', 'nowhere', 'a/b/c', '/a/b', 'C:\\a', 'https://a/b'])
def test_names_that_are_neither_folder_nor_id(tmp_path, monkeypatch, offline, name):
    pytest.importorskip('transformers')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='There is no folder'): SamRegions(name)


def test_hub_is_asked_for_safe_files_and_its_refusal_is_a_sentence(monkeypatch):
    transformers, asked = pytest.importorskip('transformers'), []
    def refuse(name, **options):
        asked.append((name, options))
        raise OSError('There is no network.\nTry again\nlater.')
    monkeypatch.setattr(transformers.AutoModelForMaskGeneration, 'from_pretrained', refuse)
    with pytest.raises(ValueError) as error: SamRegions('facebook/sam-vit-base')
    assert str(error.value).startswith('facebook/sam-vit-base cannot be loaded') and str(error.value).endswith('There is no network.')
    (name, options), = asked
    assert name == 'facebook/sam-vit-base' and options['use_safetensors'] is True and options['trust_remote_code'] is False


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ValueError, match=r"pip install 'ppqg_nb\[regions\]'"): make_regions('sam:a/b')
    assert make_regions('classic')(FRAME).shape == FRAME.shape


def test_module_does_not_import_transformers():
    import subprocess
    code = "import ppqg_nb.regions, sys; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_makers_by_word(tmp_path, monkeypatch, models, masks):
    monkeypatch.chdir(tmp_path)
    save(tmp_path/'maps'/'a.png', rows(region_map(masks)))
    (tmp_path/'classic').mkdir()
    for spec in (tmp_path/'maps', 'maps', './maps'): assert torch.equal(make_regions(spec)(FRAME, 'a'), region_map(masks))
    assert make_regions('classic') == ClassicRegions() and isinstance(make_regions('./classic'), FolderRegions)
    made = make_regions(f'sam:{models/"sam"}', 'cpu')
    assert isinstance(made, SamRegions) and made.generate.device.type == 'cpu' and made.settings['points_per_crop'] == 32
    for spec in ('', 'nowhere', 'Classic', 'sam', 'maps/a.png'):
        with pytest.raises(ValueError, match="must be 'classic', 'sam:'"): make_regions(spec)
