"AVSBench from disk: every layout, every kind of file, and one sentence for each that is wrong."
import io, json, os, pickle, shutil, struct, subprocess, sys, wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from torch.utils.data import DataLoader

from ppqg_nb import data
from ppqg_nb.audio import log_mel_patches
from ppqg_nb.core import AVSS_CLASSES, BINARY_CLASSES, S4_CATEGORIES, Clip, class_colors
from ppqg_nb.data import (AVSBench, Augment, Writer, add_regions, annotated_frames, classes_of_colors, collate, find_layout, find_tables,
                          label_names, read_entry, read_mask, read_table, read_wav, resize_clip, sound_patches, targets, write_clip)

PIANO = 'playing_piano'
S4, MS3, AVSS = 'AVSBench_object/Single-source', 'AVSBench_object/Multi-sources', 'AVSBench_semantic'


def made(name, frames=5, size=(32, 48), seconds=None, seed=0):
    "A small clip: noisy frames, bell and bird in every label map, a tone."
    g = torch.Generator().manual_seed(seed)
    labels = torch.zeros(frames, *size, dtype=torch.int64)
    labels[:, 4:20, 5:19], labels[:, 10:30, 24:40] = 6, 7
    t = torch.arange(int(8000 * (seconds or frames))) / 8000
    return Clip(torch.randint(0, 256, (frames, 3, *size), generator=g, dtype=torch.uint8), labels, (.5 * torch.sin(3000 * t)), 8000, name)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')/'bench'
    write_clip(root, made('a'), 's4', 'train', category=PIANO)
    write_clip(root, made('b', seed=1), 's4', 'test', category='male_speech')
    write_clip(root, made('c'), 'ms3', 'train')
    write_clip(root, made('d'), 'ms3', 'test')
    write_clip(root, made('e'), 'avss', 'train', 'v1s')
    write_clip(root, made('f'), 'avss', 'test', 'v1s')
    write_clip(root, made('g'), 'avss', 'test', 'v1m')
    write_clip(root, made('h', 10), 'avss', 'test', 'v2')
    return root


@pytest.fixture
def root(written, tmp_path):
    "A copy of its own for each test"
    return shutil.copytree(written, tmp_path/'bench')


def entry_of(root, task, name): return next(e for e in read_table(find_layout(root, task))[0] if e.name == name)


def save(path, array, mode=None):
    picture = Image.fromarray(np.asarray(array))
    if mode: picture = picture.convert(mode)
    picture.save(path)
    return path


def fails(match, f, *args, kind=(ValueError, FileNotFoundError), **kw):
    "Raises one sentence that holds `match`: one line, with a full stop, no other error behind it"
    with pytest.raises(kind) as caught: f(*args, **kw)
    text = str(caught.value)
    assert match in text and '\n' not in text and text.endswith('.'), text


# what is written is what is read

def test_s4_comes_back(root):
    for split, name in (('train', 'a'), ('test', 'b')):
        d = AVSBench(root, 's4', split)
        assert (len(d), d.classes, d.entries[0].subset) == (1, BINARY_CLASSES, 's4')
        clip, wanted = d[0], made(name, seed=int(name == 'b'))
        assert clip.name == name and torch.equal(clip.frames, wanted.frames) and clip.rate == 8000
        assert clip.annotated.tolist() == list(annotated_frames('s4', split)) == [True] + [split == 'test'] * 4
        for labels, on in zip(clip.labels, clip.annotated): assert torch.equal(labels, (wanted.labels[0] > 0).long() if on else torch.full((32, 48), 255))
        assert (clip.waveform - wanted.waveform).abs().max() < 2**-15
        assert S4_CATEGORIES[clip.sounds.item()] == d.entries[0].category and clip.sounds.shape == (1,)


def test_ms3_comes_back(root):
    clip = AVSBench(root, 'ms3', 'train')[0]
    assert torch.equal(clip.frames, made('c').frames) and torch.equal(clip.labels, (made('c').labels > 0).long())
    assert clip.annotated.all() and clip.sounds is None and clip.patches.shape == (5, 96, 64)


def test_avss_comes_back(root):
    d = AVSBench(root, 'avss')
    assert d.classes == AVSS_CLASSES and [len(c.frames) for c in d] == [5, 5, 10]
    for clip in d: assert torch.equal(clip.labels, made('', len(clip.frames)).labels) and clip.annotated.all() and clip.sounds is None
    assert d.entries[0].classes == ('bell', 'bird')
    train = AVSBench(root, 'avss', 'train')[0]
    assert train.annotated.tolist() == [True] + [False] * 4 and (train.labels[1:] == 255).all()


def test_subsets(root):
    assert [e.name for e in AVSBench(root, 'avss', subsets=('v1m', 'v2')).entries] == ['g', 'h']
    assert [e.name for e in AVSBench(root, 'avss', subsets='v1s').entries] == ['f']


@pytest.mark.parametrize('task, places', [('s4', (S4, 'AVSBench_object')), ('ms3', (MS3, 'AVSBench_object')), ('avss', (AVSS,))])
def test_root_may_be_any_level(root, task, places):
    wanted = [e.name for e in AVSBench(root, task).entries]
    for place in places: assert [e.name for e in AVSBench(str(root/place), task).entries] == wanted


def test_find_tables(root):
    assert list(find_tables(root)) == ['s4', 'ms3', 'avss'] and list(find_tables(root/'AVSBench_object')) == ['s4', 'ms3']
    assert 'split folders in visual_frames' in str(find_layout(root, 's4'))


# variants of the layout

def test_frames_of_s4_without_split_folders(root):
    frames = root/S4/'s4_data/visual_frames'
    wanted = AVSBench(root, 's4')[0]
    for split in ('train', 'test'):
        shutil.copytree(frames/split, frames, dirs_exist_ok=True)
        shutil.rmtree(frames/split)
    assert find_layout(root, 's4').splits == ('audio_wav', 'gt_masks')
    assert torch.equal(AVSBench(root, 's4')[0].frames, wanted.frames)


def test_frames_of_ms3_with_split_folders(root):
    frames = root/MS3/'ms3_data/visual_frames'
    for name, split in (('c', 'train'), ('d', 'test')):
        (frames/split).mkdir()
        (frames/name).rename(frames/split/name)
    assert find_layout(root, 'ms3').splits == ('visual_frames', 'audio_wav', 'gt_masks')
    assert torch.equal(AVSBench(root, 'ms3')[0].frames, made('d').frames)


@pytest.mark.parametrize('post', ['', '_384'])
@pytest.mark.parametrize('kept, dropped', [('labels_semantic', 'labels_rgb'), ('labels_rgb', 'labels_semantic')])
def test_processed_folders(root, post, kept, dropped):
    for clip in (root/AVSS).glob('v*/*'):
        shutil.rmtree(clip/dropped)
        for name in ('frames', kept): (clip/name).rename(clip/f'processed_{name}{post}')
    layout = find_layout(root, 'avss')
    assert (layout.frames, layout.labels) == (f'processed_frames{post}', f'processed_{kept}{post}')
    assert torch.equal(AVSBench(root, 'avss')[2].labels, made('', 10).labels)


def test_label_pictures_with_a_palette_of_their_own(root):
    for clip in (root/AVSS).glob('v*/*'):
        shutil.rmtree(clip/'labels_semantic')
        for path in (clip/'labels_rgb').iterdir():
            picture = Image.fromarray(np.uint8(70 - classes_of_colors(np.array(Image.open(path)))))
            picture.putpalette(class_colors(71)[::-1].tobytes())
            picture.save(path)
    assert torch.equal(AVSBench(root, 'avss')[2].labels, made('', 10).labels)


def test_the_usual_place_comes_first(root):
    shutil.copy(root/MS3/'ms3_meta_data.csv', root)
    assert find_layout(root, 'ms3').table == root/MS3/'ms3_meta_data.csv'


def test_original_frames_before_processed_ones(root):
    for clip in (root/AVSS).glob('v*/*'):
        for name in ('frames', 'labels_semantic'): shutil.copytree(clip/name, clip/f'processed_{name}')
    assert find_layout(root, 'avss').frames == 'frames'


# a root that will not do

def test_bad_roots(root, tmp_path):
    fails('There is no folder', find_layout, root/'nowhere', 's4')
    (tmp_path/'empty').mkdir()
    fails('is empty; pass the folder in which', find_layout, tmp_path/'empty', 's4')
    fails('is a file', find_layout, root/AVSS/'metadata.csv', 'avss')
    fails('holds none of s4_meta_data.csv, ms3_meta_data.csv, metadata.csv', find_layout, root/AVSS/'v1s', 'avss')
    fails('holds S4 and MS3 and no AVSS; pass another task, or the folder in which AVSBench_semantic lies', find_layout, root/'AVSBench_object', 'avss')
    fails('holds AVSS and no S4', AVSBench, root/AVSS, 's4')
    fails("task is 'v2'; it must be one of s4, ms3, avss", find_layout, root, 'v2')
    shutil.rmtree(root/S4/'s4_data/visual_frames')
    fails('is not; unpack the frames beside it', find_layout, root, 's4')


def test_bad_arguments(root):
    fails("split is 'tests'", AVSBench, root, 's4', 'tests')
    fails("subsets is 'v3'; it must be one of v1s, v1m, v2", AVSBench, root, 'avss', subsets=('v3',))
    fails('has no clip of val in s4; try another split', AVSBench, root, 's4', 'val')


# tables

TABLES = [('s4', 'name,start,split\na,0,test', 'has no column category; its columns are name, start, split'),
          ('s4', '', 'is empty; copy it again'), ('s4', '\n\n', 'is empty'), ('ms3', 'video_id,split\n', 'has a header and no rows'),
          ('ms3', 'video_id,split\na,test\na,train', 'video_id stands there twice'), ('ms3', 'video_id,split\na,tset', "split is 'tset'; it must be one of train, val, test"),
          ('ms3', 'video_id,split\na', "split is ''"), ('ms3', 'video_id,split\n,test', "video_id is ''"),
          ('s4', 'name,category,split\na,playing_pano,test', "category is 'playing_pano'; it must be one of 23 names, of which playing_piano is the nearest"),
          ('avss', 'uid,a_obj,split,label\na,bell,test,v3', "label is 'v3'; it must be one of v1s, v1m, v2"),
          *(('ms3', f'video_id,split\n{name},test', 'it must be a plain name, without a folder') for name in ('../x', '/etc/x', '..', 'a\\b', 'C:x'))]

@pytest.mark.parametrize('task, text, match', TABLES)
def test_bad_tables(root, task, text, match):
    find_tables(root)[task].write_text(text)
    fails(match, AVSBench, root, task)


def test_table_that_is_no_text(root):
    (root/MS3/'ms3_meta_data.csv').write_bytes(b'video_id,split\n\xff\xfe,test\n')
    fails('is no CSV in UTF-8', AVSBench, root, 'ms3')


def test_table_with_byte_order_mark_blanks_and_more_columns(root):
    (root/MS3/'ms3_meta_data.csv').write_bytes(b'\xef\xbb\xbf video_id , split ,note\r\n d , test ,"x, y"\r\n\r\n')
    assert [e.name for e in AVSBench(root, 'ms3').entries] == ['d']


def test_read_table_gives_all_problems(root):
    (root/MS3/'ms3_meta_data.csv').write_text('video_id,split\na,test\n../b,test\nc,tset\na,val\n')
    entries, problems = read_table(find_layout(root, 'ms3'))
    assert [e.name for e in entries] == ['a'] and len(problems) == 3 and all('ms3_meta_data.csv, clip ' in p for p in problems)


# masks

def test_binary_masks(tmp_path):
    wanted = np.random.default_rng(0).random((8, 9)) > .5
    for mode in ('1', 'L', 'P', 'RGB'): assert np.array_equal(read_mask(save(tmp_path/'x.png', np.uint8(255 * wanted), mode), 'binary'), wanted), mode
    assert np.array_equal(read_mask(save(tmp_path/'x.png', np.uint8(wanted)), 'binary'), wanted)


def test_palettes_of_avss(tmp_path):
    classes, colors = np.arange(71).reshape(1, 71), class_colors(71)
    assert np.array_equal(read_mask(save(tmp_path/'x.png', np.uint8(classes)), 'index')[0], classes[0])
    for kind in ('index', 'color'): assert np.array_equal(read_mask(save(tmp_path/'x.png', colors[classes]), kind)[0], classes[0])
    assert len({tuple(c) for c in colors.tolist()}) == 71
    picture = Image.fromarray(np.uint8(classes))
    picture.putpalette(colors[::-1].tobytes())                       # the place in the palette is not the class
    picture.save(tmp_path/'x.png')
    assert np.array_equal(read_mask(tmp_path/'x.png', 'color')[0], classes[0, ::-1])
    assert np.array_equal(read_mask(tmp_path/'x.png', 'index')[0], classes[0])


def test_every_other_colour_is_no_class():
    rgb = np.random.default_rng(0).integers(0, 256, (1000, 1, 3)).astype(np.uint8)
    table = {tuple(c): i for i, c in enumerate(class_colors(71).tolist())}
    assert classes_of_colors(rgb)[:, 0].tolist() == [table.get(tuple(c), -1) for c in rgb[:, 0].tolist()]
    assert classes_of_colors(class_colors(80)[None])[0].tolist() == [*range(71)] + [-1] * 9


def test_bad_masks(tmp_path):
    x = np.zeros((4, 5), np.uint8)
    x[2, 3] = 255
    assert read_mask(save(tmp_path/'x.png', x), 'index')[2, 3] == 255
    x[2, 3] = 71
    fails('x.png has the value 71; the values of such a mask are classes, 0 to 70, and 255, ignored', read_mask, save(tmp_path/'x.png', x), 'index')
    x[2, 3] = 128
    fails('x.png has the value 128; the values of such a mask are 0, and 1 or 255', read_mask, save(tmp_path/'x.png', x), 'binary')
    fails('x.png is a picture of mode 1', read_mask, save(tmp_path/'x.png', x, '1'), 'index')
    rgb = np.zeros((4, 5, 3), np.uint8)
    rgb[2, 3] = 128, 1, 0
    fails('x.png has the colour (128, 1, 0) at x 3, y 2, which no class has', read_mask, save(tmp_path/'x.png', rgb), 'color')
    assert read_mask(save(tmp_path/'x.png', x.astype(np.uint16)[:2]), 'index').max() == 0        # 16 bits a pixel


# damage: what is done to which file of clip g, and what is said

def cut(path): path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])

DAMAGE = [('frames/2.jpg', Path.unlink, '4 of its 5 frames are there'), ('frames/2.jpg', cut, 'frames/2.jpg cannot be read as a picture'),
          ('frames/2.jpg', lambda p: p.write_text('no'), 'frames/2.jpg is no picture'), ('frames/2.jpg', lambda p: p.write_text(''), 'frames/2.jpg is no picture'),
          ('frames/2.jpg', lambda p: save(p, np.zeros((9, 8, 3), np.uint8)), 'frames/2.jpg is 8 × 9 pixels, and the first frame 48 × 32'),
          ('labels_semantic/3.png', Path.unlink, 'labels_semantic/3.png is missing'), ('labels_semantic/3.png', cut, 'labels_semantic/3.png cannot be read'),
          ('labels_semantic/3.png', lambda p: save(p, np.zeros((9, 8), np.uint8)), 'labels_semantic/3.png is 8 × 9 pixels'),
          ('labels_semantic/3.png', lambda p: save(p, np.full((32, 48), 99, np.uint8)), 'has the value 99'),
          ('audio.wav', Path.unlink, 'audio.wav is missing'), ('audio.wav', cut, 'audio.wav is cut off'), ('audio.wav', lambda p: p.write_text('no'), 'audio.wav is no WAV')]

@pytest.mark.parametrize('file, damage, match', DAMAGE)
def test_damaged_clip(root, file, damage, match):
    damage(root/AVSS/'v1m/g'/file)
    d = AVSBench(root, 'avss', subsets=['v1m'])
    fails(match, d.__getitem__, 0)
    fails('Clip g: ', d.__getitem__, 0)


# sounds

def wav_bytes(samples, width, rate=8000):
    "PCM as the standard library writes it: samples (n, channels), whole numbers."
    out = io.BytesIO()
    with wave.open(out, 'wb') as f:
        f.setnchannels(samples.shape[1]); f.setsampwidth(width); f.setframerate(rate)
        f.writeframes(b''.join(int(v).to_bytes(width, 'little', signed=width > 1) for v in samples.flat))
    return out.getvalue()


@pytest.mark.parametrize('rate', [8000, 16000, 44100, 48000])
@pytest.mark.parametrize('channels', [1, 2, 6])
@pytest.mark.parametrize('width', [1, 2, 3, 4])
def test_pcm(tmp_path, width, channels, rate):
    x = np.random.default_rng(0).uniform(-1, 1, (400, channels))
    whole = np.floor(x * 2**(8 * width - 1)) + (128 if width == 1 else 0)
    (tmp_path/'x.wav').write_bytes(wav_bytes(whole, width, rate))
    y, r = read_wav(tmp_path/'x.wav')
    assert (r, y.dtype, y.shape) == (rate, torch.float32, (400,)) and np.abs(y.numpy() - x.mean(1)).max() <= 2 / 2**(8 * width)**(width < 3) + 1e-6


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_floats(tmp_path, dtype):
    x = np.random.default_rng(0).uniform(-2, 2, (400, 2)).astype(dtype)
    wavfile.write(tmp_path/'x.wav', 22050, x)
    assert np.abs(read_wav(tmp_path/'x.wav')[0].numpy() - x.mean(1)).max() < 1e-6


def test_bad_wavs(tmp_path):
    path, good = tmp_path/'x.wav', wav_bytes(np.arange(1000)[:, None], 2)
    def said(match, content):
        path.write_bytes(content)
        fails(match, read_wav, path)
    said('x.wav: waveform is empty', wav_bytes(np.zeros((0, 1)), 2))
    for n in (1000, 1001, 44, 30, 20, 12): said('x.wav is cut off', good[:n])
    for content in (b'', b'no', good[:3], b'ID3' + good): said('x.wav is no WAV', content)
    for code, name in ((6, 'ALAW'), (0x55, 'MPEGLAYER3'), (2, 'ADPCM')):
        said(f'x.wav is compressed ({name}); convert it: ffmpeg -i', good[:20] + struct.pack('<H', code) + good[22:])
    said('states a rate of 0', good[:24] + struct.pack('<I', 0) + struct.pack('<I', 0) + good[32:])
    wavfile.write(path, 8000, np.float32([0, np.nan, 0]))
    fails('x.wav: waveform holds NaN', read_wav, path)
    fails('nothing.wav is missing', read_wav, tmp_path/'nothing.wav')
    fails('cannot be read' if os.name == 'nt' else 'is no WAV', read_wav, tmp_path)


def test_wav_with_a_chunk_that_is_no_sound(tmp_path):
    good = wav_bytes(np.arange(1000)[:, None], 2)
    more = good[:36] + b'LIST' + struct.pack('<I', 4) + b'INFO' + good[36:]
    (tmp_path/'x.wav').write_bytes(more[:4] + struct.pack('<I', len(more) - 8) + more[8:])
    assert read_wav(tmp_path/'x.wav')[0].shape == (1000,)


def test_short_sounds_repeat_in_s4_and_end_in_silence_in_avss(tmp_path):
    clip = made('x', seconds=3)
    write_clip(tmp_path, clip, 's4', 'test', category=PIANO)
    write_clip(tmp_path, clip, 'avss', 'test')
    s4, avss = AVSBench(tmp_path, 's4')[0].patches, AVSBench(tmp_path, 'avss')[0].patches
    whole = log_mel_patches(read_wav(tmp_path/AVSS/'v1m/x/audio.wav')[0], 8000)
    assert len(whole) == 3 and torch.equal(s4[:3], whole) and torch.equal(avss[:3], whole)
    for i in (3, 4): assert torch.equal(s4[i], whole[2])
    assert (avss[4] + 4.605170).abs().max() < 1e-5 and (avss[3] > -4).any()


@pytest.mark.parametrize('seconds', [.1, .97, .98, 1.934, 1.936, 4.8, 5., 7.])
def test_repeat_is_as_many_whole_patches_as_there_are(seconds):
    x = torch.rand(round(16000 * seconds)) - .5
    whole, made = log_mel_patches(x, 16000)[:5], sound_patches(x, 16000, 5, True)
    assert made.shape == (5, 96, 64)
    if len(whole): assert torch.equal(made, whole[torch.arange(5).clamp(max=len(whole) - 1)])
    else: assert torch.equal(made, log_mel_patches(x, 16000, 1).expand(5, -1, -1))


def test_what_comes_after_the_last_patch_is_not_looked_at():
    x = torch.rand(441000) - .5
    assert torch.equal(sound_patches(x, 44100, 5), log_mel_patches(x, 44100, 5))
    sound_patches(torch.rand(200000), 1, 5)                          # 55 hours at 16 kHz


# the loss's side, and batches

def test_targets():
    labels = torch.tensor([[[0, 6], [255, 6]], [[255, 255], [255, 255]]])
    clip = Clip(torch.zeros(2, 3, 2, 2).byte(), labels, torch.zeros(9), 8000, 'x', torch.tensor([True, False]))
    first, second = targets(clip, AVSS_CLASSES)
    assert first['labels'].tolist() == [0, 6] and first['masks'].tolist() == [[[True, False], [False, False]], [[False, True], [False, True]]]
    assert first['masks'].dtype == torch.bool and first['annotated'] is True and 'sounds' not in first
    assert second['masks'].shape == (0, 2, 2) and second['annotated'] is False
    fails('Clip x has the label 6, and there are 6 classes', targets, clip, 6)
    assert targets(replace(clip, sounds=torch.tensor([3])))[0]['sounds'].tolist() == [3]
    assert all(t['annotated'] for t in targets(replace(clip, annotated=None)))


def test_clips_of_5_and_10_seconds_in_one_batch(root):
    d = AVSBench(root, 'avss', subsets=('v1m', 'v2'))
    batch = collate(list(d))
    assert batch.lengths == (5, 10) and batch.names == ('g', 'h') and batch.regions is None and len(batch.targets) == 15
    assert torch.equal(batch.frames[5:], d[1].frames) and torch.equal(batch.patches[:5], d[0].patches)


def test_what_does_not_collate():
    clip = replace(made('x'), patches=torch.zeros(5, 96, 64))
    fails('Clip y is 24 × 16 pixels, and x 48 × 32; make them the same with resize_clip or Augment', collate, [clip, replace(resize_clip(clip, (16, 24)), name='y')])
    fails('give all or none', collate, [clip, replace(clip, regions=clip.frames)])
    fails('Clip x has no patches', collate, [made('x')])
    fails('There are no clips', collate, [])


def negative(frame, name): return 255 - frame


@pytest.mark.parametrize('start, workers', [('fork', 2), ('spawn', 1)])
@pytest.mark.skipif(os.name == 'nt', reason='no fork there')
def test_workers_change_nothing(root, start, workers):
    d = AVSBench(root, 'avss', regions=negative)
    alone = list(DataLoader(d, collate_fn=collate))
    beside = list(DataLoader(d, collate_fn=collate, num_workers=workers, multiprocessing_context=start))
    assert len(alone) == len(beside) == 3
    for a, b in zip(alone, beside):
        assert (a.names, a.lengths) == (b.names, b.lengths) and torch.equal(a.regions, 255 - b.frames)
        for x, y in ((a.frames, b.frames), (a.patches, b.patches)): assert torch.equal(x, y)
        for s, t in zip(a.targets, b.targets): assert torch.equal(s['masks'], t['masks']) and torch.equal(s['labels'], t['labels'])


def test_it_pickles(root):
    d = pickle.loads(pickle.dumps(AVSBench(root, 's4', augment=Augment(32), regions=negative)))
    assert d[0].frames.shape == d[0].regions.shape == (5, 3, 32, 32)


# region maps

def test_regions(root):
    asked = []
    clip = AVSBench(root, 'ms3', regions=lambda frame, name: asked.append(name) or negative(frame, name))[0]
    assert asked == [f'd/{i}' for i in range(5)] and torch.equal(clip.regions, 255 - clip.frames)
    fails('Clip x: the region map of frame 0 has shape (3, 32, 47); it must be that of the frame, (3, 32, 48)', add_regions, made('x'), lambda f, n: f[..., 1:])
    def none(frame, name): raise FileNotFoundError(f'There is no map {name}.')
    fails('Clip x: There is no map x/0.', add_regions, made('x'), none)


# augmentation

def ruler(h, w):
    "A clip that tells where each pixel comes from: x // 2 and y // 2 in the frames, their sum's half in the labels."
    y, x = torch.meshgrid(torch.arange(h) // 2, torch.arange(w) // 2, indexing='ij')
    image = torch.stack([x, y, torch.full_like(x, 200)]).byte().expand(3, -1, -1, -1)
    return Clip(image, ((x + y) // 4).expand(3, -1, -1), torch.zeros(9), 8000, 'ruler', regions=image)


@pytest.mark.parametrize('size', [(64, 64), (96, 160), (160, 96), (40, 300)])
def test_one_geometry(size):
    for seed in range(12):
        torch.manual_seed(seed)
        m = Augment(64, color=0)(ruler(*size))
        assert m.frames.shape == m.regions.shape == (3, 3, 64, 64) and m.labels.shape == (3, 64, 64)
        assert (m.frames.dtype, m.labels.dtype, m.regions.dtype) == (torch.uint8, torch.int64, torch.uint8)
        assert type(m.frames) is type(m.labels) is type(m.regions) is torch.Tensor
        for x in (m.frames, m.labels, m.regions): assert (x == x[:1]).all()
        inside = m.labels[0] < 255
        assert (m.frames[0, :, ~inside] == 128).all() and (m.regions[0, :, ~inside] == 128).all()
        assert (m.frames[0, 2, inside] == 200).all() and inside.any()
        (x, y, _), (u, v, _) = m.frames[0].int(), m.regions[0].int()
        assert torch.equal(((u + v) // 4)[inside], m.labels[0][inside])
        for a, b in ((x, u), (y, v)): assert (a - b)[inside].abs().max() <= 1


def test_scale_crop_and_flip_all_happen():
    torch.manual_seed(0)
    draws = [Augment(64, color=0)(ruler(64, 64)) for _ in range(40)]
    padded = sum((m.labels == 255).any().item() for m in draws)
    flipped = sum((m.regions[0, 0, 32][m.labels[0, 32] < 255].diff() if (m.labels[0, 32] < 255).any() else torch.zeros(1)).float().sum() > 100 for m in draws)
    assert 5 < padded < 30 and 5 < flipped < 35
    plain = Augment(64, scale=(1, 1), flip=0, color=0)(ruler(64, 64))
    assert torch.equal(plain.frames, ruler(64, 64).frames) and torch.equal(plain.labels, ruler(64, 64).labels)


def test_colours_change_in_frames_only():
    clip, changed = ruler(64, 64), 0
    for seed in range(10):
        torch.manual_seed(seed)
        m = Augment(64, scale=(1, 1), flip=0)(clip)
        changed += not torch.equal(m.frames, clip.frames)
        assert torch.equal(m.regions, clip.regions) and torch.equal(m.labels, clip.labels) and (m.frames == m.frames[:1]).all()
    assert changed > 5
    padded = Augment(96, scale=(.5, .5), flip=0, color=1)(clip)
    assert (padded.frames[:, :, padded.labels[0] == 255] == 128).all()


def test_a_seed_repeats_it():
    def draw(seed): torch.manual_seed(seed); return Augment(32)(made('x'))
    assert torch.equal(draw(1).frames, draw(1).frames) and torch.equal(draw(1).labels, draw(1).labels)
    assert not torch.equal(draw(1).frames, draw(2).frames)


def test_augmentation_keeps_the_rest(root):
    clip = AVSBench(root, 's4', 'train')[0]
    m = Augment(32)(clip)
    for key in ('waveform', 'patches', 'annotated', 'sounds', 'name', 'rate'): assert getattr(m, key) is getattr(clip, key)
    assert (m.labels[1:] == 255).all()


def test_resize():
    small = resize_clip(replace(made('x'), regions=made('x').frames), (16, 24))
    assert small.frames.shape == small.regions.shape == (5, 3, 16, 24)
    assert torch.equal(small.labels, made('x').labels[:, 1::2, 1::2]) and torch.equal(small.regions, made('x').frames[:, :, 1::2, 1::2])
    assert (small.frames.float().mean() - made('x').frames.float().mean()).abs() < 2 and resize_clip(small, 40).labels.shape == (5, 40, 40)


# writing

def test_modes_of_masks_that_are_written(root):
    modes = [Image.open(entry_of(root, t, n).masks[0]).mode for t, n in (('s4', 'a'), ('ms3', 'c'), ('avss', 'g'))]
    assert modes == ['1', 'P', 'L']
    assert np.array_equal(np.unique(np.array(Image.open(entry_of(root, 'ms3', 'c').masks[0]))), [0, 255])
    rgb = np.array(Image.open(root/AVSS/'v1m/g/labels_rgb/2.png'))
    assert np.array_equal(classes_of_colors(rgb), made('').labels[2])


def test_what_is_not_written(root):
    before = sorted(p for p in root.rglob('*'))
    fails('has a clip c already; choose another name', write_clip, root, made('c'), 'ms3', 'val')
    fails('Clip x has 5 frames; a clip of v2 has 10', write_clip, root, made('x'), 'avss', 'test', 'v2')
    fails("name is ''; it must be a plain name", write_clip, root, made(''), 'ms3', 'test')
    fails("name is '../x'; it must be a plain name", write_clip, root, made('../x'), 'ms3', 'test')
    fails('category is None', write_clip, root, made('x'), 's4', 'test')
    fails("subset is 'ms3'", write_clip, root, made('x'), 'avss', 'test', 'ms3')
    fails("split is 'dev'", write_clip, root, made('x'), 'avss', 'dev')
    fails("task is 'S4'", write_clip, root, made('x'), 'S4', 'test')
    fails('labels of frame 0 go from 0 to 71', write_clip, root, replace(made('x'), labels=made('x').labels.clamp(max=1) * 71), 'avss', 'test')
    fails('labels of frame 0 go from 255 to 255', write_clip, root, replace(made('x'), labels=torch.full((5, 32, 48), 255)), 'ms3', 'test')
    fails('frame 1 has no labels, and in s4 test it must', write_clip, root, replace(made('x'), annotated=torch.arange(5) < 1), 's4', 'test', category=PIANO)
    assert sorted(p for p in root.rglob('*')) == before


def test_a_clip_with_one_mask_may_train(root):
    once = replace(made('x'), annotated=torch.arange(5) < 1, labels=made('x').labels.index_fill(0, torch.arange(1, 5), 255))
    entry = write_clip(root, once, 's4', 'train', category=PIANO)
    assert torch.equal(read_entry(entry).labels[1:], once.labels[1:]) and len(AVSBench(root, 's4', 'train')) == 2


def test_a_silent_clip_is_written(root):
    entry = write_clip(root, replace(made('x'), labels=0 * made('x').labels, waveform=torch.zeros(9)), 'avss', 'val')
    assert entry.classes == AVSBench(root, 'avss', 'val').entries[0].classes == () and read_entry(entry).labels.max() == 0


def test_files_without_a_row_are_not_replaced(root):
    path = root/AVSS/'v1m/x/audio.wav'
    path.parent.mkdir()
    path.write_text('mine')
    fails('audio.wav is there already', write_clip, root, made('x'), 'avss', 'test')
    assert path.read_text() == 'mine' and not list(root.rglob('*.part'))


def test_a_full_disk_leaves_nothing(root, monkeypatch):
    before = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(data.wavfile, 'write', full)
    with pytest.raises(OSError, match='No space left'): write_clip(root, made('x'), 'avss', 'test')
    assert {p: p.read_bytes() for p in root.rglob('*') if p.is_file()} == before


def test_a_table_with_columns_of_its_own_keeps_them(root):
    (root/MS3/'ms3_meta_data.csv').write_text('split,video_id,note\ntest,d,"x, y"\n')
    write_clip(root, made('x'), 'ms3', 'val')
    assert (root/MS3/'ms3_meta_data.csv').read_text().splitlines() == ['split,video_id,note', 'test,d,"x, y"', 'val,x,']


# labels of one's own

def listed(home, numbers):
    "Put a list of labels beside the table of AVSS."
    home.mkdir(parents=True, exist_ok=True)
    (home/'label2idx.json').write_text(numbers if isinstance(numbers, str) else json.dumps(numbers))


OWN = dict(background=1, bell=3, bird=2)


def test_the_list_beside_the_table_names_the_labels(root):
    listed(root/AVSS, {name: i + 1 for i, name in enumerate(AVSS_CLASSES)})
    assert AVSBench(root, 'avss').classes == AVSS_CLASSES == label_names(find_layout(root, 'avss'))
    listed(root/AVSS, OWN)
    assert AVSBench(root, 'avss').classes == ('background', 'bird', 'bell')
    fails('has the value 6; the values of such a mask are classes, 0 to 2', AVSBench(root, 'avss').__getitem__, 0)
    assert AVSBench(root, 'ms3').classes == label_names(find_layout(root, 'ms3')) == BINARY_CLASSES


LISTS = [('[1', 'cannot be read as JSON'), ('\xff', 'cannot be read as JSON'), ('[1, 2]', 'is no list'), ('{}', 'is no list'), ('null', 'is no list'),
         (dict(background=1), 'is no list of 2 to 255 names'), (dict(background=1, a_b=2), 'without _'), ({'background': 1, ' ': 2}, 'is no list'),
         (dict(background=1, a='2'), 'is no list'), (dict(background=True, a=2), 'is no list'), (dict(background=1, a=[2]), 'is no list'),
         ({f'{i}': i for i in range(256)}, 'is no list'),
         *((numbers, 'does not give background the number 1 and its other') for numbers in (
             dict(background=0, a=1), dict(a=1, background=2), dict(background=1, a=2, b=2), dict(background=1, a=3), dict(background=1, a=0)))]

@pytest.mark.parametrize('numbers, match', LISTS)
def test_bad_lists_of_labels(root, numbers, match):
    if numbers == '\xff': (root/AVSS/'label2idx.json').write_bytes(b'\xff')
    else: listed(root/AVSS, numbers)
    fails(match, AVSBench, root, 'avss')
    fails('label2idx.json', write_clip, root, made('x'), 'avss', 'test')
    assert len(AVSBench(root, 'ms3')) == 1


@pytest.mark.parametrize('kept', ['labels_semantic', 'labels_rgb'])
def test_own_labels_come_back(tmp_path, kept):
    listed(tmp_path/AVSS, OWN)
    clip = replace(made('x'), labels=(made('x').labels - 5).clamp(min=0))
    assert write_clip(tmp_path, clip, 'avss', 'test').classes == ('bird', 'bell')
    fails('labels of frame 0 go from 0 to 7; they must be from 0 to 2', write_clip, tmp_path, made('y'), 'avss', 'test')
    for name in {'labels_semantic', 'labels_rgb'} - {kept}: shutil.rmtree(tmp_path/AVSS/'v1m/x'/name)
    assert torch.equal(AVSBench(tmp_path, 'avss')[0].labels, clip.labels)
    picture = tmp_path/AVSS/'v1m/x'/kept/'2.png'
    save(picture, np.full((32, 48), 3, np.uint8) if kept == 'labels_semantic' else np.broadcast_to(class_colors(4)[3], (32, 48, 3)))
    fails('which no class has' if 'rgb' in kept else 'has the value 3', AVSBench(tmp_path, 'avss').__getitem__, 0)


def test_many_labels(tmp_path):
    names = ('background', *(f'n{i}' for i in range(1, 255)))
    listed(tmp_path/AVSS, {n: i + 1 for i, n in enumerate(names)})
    clip = replace(made('x'), labels=made('x').labels * 36 + 1)                   # 1, 217, 253
    write_clip(tmp_path, clip, 'avss', 'test')
    assert torch.equal(AVSBench(tmp_path, 'avss')[0].labels, clip.labels)
    shutil.rmtree(tmp_path/AVSS/'v1m/x/labels_semantic')
    d = AVSBench(tmp_path, 'avss')
    assert torch.equal(d[0].labels, clip.labels) and d.entries[0].classes == ('n1', 'n217', 'n253')


# a writer

def test_a_writer_writes_what_write_clip_writes(tmp_path):
    writer = Writer(tmp_path/'a', 'avss')
    for name, subset, frames in (('x', 'v1s', 5), ('y', 'v2', 10), ('z', 'v1m', 5)):
        a = writer.write(made(name, frames), 'test', subset)
        b = write_clip(tmp_path/'b', made(name, frames), 'avss', 'test', subset)
        assert a.sound.relative_to(tmp_path/'a') == b.sound.relative_to(tmp_path/'b') and a.classes == b.classes
    a, b = ({p.relative_to(r): p.read_bytes() for p in r.rglob('*') if p.is_file()} for r in (tmp_path/'a', tmp_path/'b'))
    assert a == b and writer.names == {'x', 'y', 'z'}
    fails('has a clip y already', writer.write, made('y'), 'test')
    fails("task is 'v2'", Writer, tmp_path, 'v2')


def test_rows_go_to_the_end_of_any_table(root):
    for text in ('split,video_id\ntest,d', 'split,video_id\ntest,d\n', '\ufeffsplit,video_id\r\ntest,d\r\n'):
        (root/MS3/'ms3_meta_data.csv').write_text(text, encoding='utf-8', newline='')
        Writer(root, 'ms3').write(made('x'), 'val', anew=True)
        assert (root/MS3/'ms3_meta_data.csv').read_bytes() == text.encode().rstrip() + (b'\r\n' if text[-2:] in ('\r\n', ',d') else b'\n') + b'val,x\r\n'
        assert [e.name for e in read_table(find_layout(root, 'ms3'))[0]] == ['d', 'x']


def test_anew_replaces_files_without_a_row(root):
    path = root/AVSS/'v1m/x/audio.wav'
    path.parent.mkdir()
    path.write_text('left behind')
    assert Writer(root, 'avss').write(made('x'), 'test', anew=True).sound == path and read_wav(path)[1] == 8000


CUT = '''
import resource, signal, sys
from pathlib import Path
from ppqg_nb.data import _add_row
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
table = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (table.stat().st_size + 4,) * 2)
try: _add_row(table, ['video_id', 'split'], dict(video_id='a-long-name', split='test'))
except OSError as e: print(e.errno)
'''


@pytest.mark.skipif(os.name == 'nt', reason='limits of POSIX')
def test_a_row_is_whole_or_not_there(root):
    table = root/MS3/'ms3_meta_data.csv'
    before = table.read_bytes()
    done = subprocess.run([sys.executable, '-c', CUT, str(table)], capture_output=True, text=True)
    assert done.stdout == '28\n' and table.read_bytes() == before, done.stderr
