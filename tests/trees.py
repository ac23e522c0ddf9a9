"""Small trees in the layout of AVSBench, written file by file: a second way beside `data.write_clip` of stating where things lie.

Nothing of the package is used. Each function takes an empty or a begun ROOT and gives back the folder of its subset.
"""
import csv, json, wave
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, RATE = (56, 56), 8000         # height and width of the pictures; samples a second
AVSS = '''background accordion airplane axe baby bassoon bell bird boat boy bus car cat cello clarinet clipper clock dog
    donkey drum duck elephant emergency-car erhu flute frying-food girl goose guitar gun guzheng hair-dryer handpan
    harmonica harp helicopter hen horse keyboard leopard lion man marimba missile-rocket motorcycle mower parrot piano
    pig pipa saw saxophone sheep sitar sorna squirrel tabla tank tiger tractor train trombone truck trumpet tuba ukulele
    utv vacuum-cleaner violin wolf woman'''.split()
S4_CLIPS = [                        # name, start, category, split
    ('0aB-cDeFgHi_10000_15000', 10, 'cat_meowing', 'train'), ('1jK_lMnOpQr_0_5000', 0, 'horse_clip-clop', 'train'),
    ('2sTuVwXyZaB_30000_35000', 30, 'cat_meowing', 'val'), ('3cDeFgHiJkL_5000_10000', 5, 'playing_piano', 'test')]
MS3_CLIPS = [('-mNoPqRsTuV_8000', 'train'), ('4wXyZaBcDeF_0', 'val'), ('5gHi-kLmNoP_2000', 'test')]
AVSS_CLIPS = [                      # video id, start in seconds, classes, split, label
    ('0aB-cDeFgHi', 10, ['cat'], 'train', 'v1s'), ('2sTuVwXyZaB', 30, ['cat'], 'val', 'v1s'),
    ('3cDeFgHiJkL', 5, ['piano'], 'test', 'v1s'),
    ('-mNoPqRsTuV', 8, ['bell', 'bird'], 'train', 'v1m'), ('5gHi-kLmNoP', 2, ['man', 'guitar'], 'test', 'v1m'),
    ('6qRsTuVwXyZ', 70, ['emergency-car'], 'train', 'v2'), ('7aBcDeFgHiJ', 0, ['woman', 'violin'], 'test', 'v2')]


def colour(label):
    "RGB of a class: from the lowest bits on, three of them go to red, green and blue, highest bit first."
    rgb = [0, 0, 0]
    for bit in range(8):
        for c in range(3): rgb[c] |= (label >> c & 1) << (7 - bit)
        label >>= 3
    return rgb


def frame(t, size=SIZE):
    "The t-th frame of any clip: a slope of grey with a yellow square for the first object, a blue one for the second."
    picture = np.broadcast_to(np.linspace(60, 200, size[1])[None, :, None], (*size, 3)).astype(np.uint8).copy()
    for o, rgb in enumerate([(230, 200, 40), (40, 60, 200)]): picture[place(t, o)] = rgb
    return picture


def place(t, o): return slice(6 + 26 * o, 22 + 26 * o), slice(4 + 3 * t, 20 + 3 * t)


def labels(t, values, size=SIZE):
    "(H, W): the value of each object where it is, else 0."
    out = np.zeros(size, np.uint8)
    for o, value in enumerate(values): out[place(t, o)] = value
    return out


def save(path, array, mode=None, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == '1': image = image.point(lambda v: 255 * (v > 0)).convert('1', dither=Image.Dither.NONE)
    if mode == 'P': image.putpalette(palette)
    image.save(path)


def sound(path, seconds, hertz=440.):
    "16 bits, mono."
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 8000 * np.sin(2 * np.pi * hertz * np.arange(seconds * RATE) / RATE)
    with wave.open(str(path), 'wb') as f:
        f.setnchannels(1); f.setsampwidth(2); f.setframerate(RATE)
        f.writeframes(tone.astype('<i2').tobytes())


def table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w', newline='') as f: csv.writer(f).writerows([columns, *rows])


def s4(root, split_folder=True, clips=S4_CLIPS, size=SIZE):
    "Single sources; the frames in a folder of their split or not."
    base = Path(root)/'AVSBench_object'/'Single-source'
    table(base/'s4_meta_data.csv', ['name', 'start', 'category', 'split'], clips)
    data = base/'s4_data'
    for n, (name, start, category, split) in enumerate(clips):
        pictures = data/'visual_frames'/(split if split_folder else '')/category/name
        for t in range(5):
            save(pictures/f'{name}_{t + 1}.png', frame(t, size))
            if t and split == 'train': continue
            save(data/'gt_masks'/split/category/name/f'{name}_{t + 1}.png', labels(t, [1], size), '1')
        sound(data/'audio_wav'/split/category/f'{name}.wav', 5, 300 + 40 * n)
    return data


def ms3(root, split_folder=False, clips=MS3_CLIPS, size=SIZE):
    "Multiple sources; the frames in a folder of their split or not. In the third second nothing sounds."
    base = Path(root)/'AVSBench_object'/'Multi-sources'
    table(base/'ms3_meta_data.csv', ['video_id', 'split'], clips)
    data = base/'ms3_data'
    for n, (name, split) in enumerate(clips):
        pictures = data/'visual_frames'/(split if split_folder else '')/name
        for t in range(5):
            save(pictures/f'{name}.mp4_{t + 1}.png', frame(t, size))
            save(data/'gt_masks'/split/name/f'{name}_{t + 1}.png', labels(t, [] if t == 2 else [1, 1], size), 'P',
                 [0, 0, 0, 255, 255, 255])
        sound(data/'audio_wav'/split/f'{name}.wav', 5, 500 + 40 * n)
    return data


def avss(root, subsets=('v1s', 'v1m', 'v2'), processed=False, kinds=('rgb', 'semantic'), clips=AVSS_CLIPS, size=SIZE):
    "AVSBench-semantic: label pictures in colours, as numbers, or both; folders named as given out or `processed_…`."
    base, before = Path(root)/'AVSBench_semantic', 'processed_' if processed else ''
    clips = [c for c in clips if c[4] in subsets]
    uids = [f'{vid}_{1000 * start}_{1000 * (start + (10 if label == "v2" else 5))}' for vid, start, _, _, label in clips]
    table(base/'metadata.csv', ['vid', 'uid', 's_min', 's_sec', 'a_obj', 'split', 'label'],
          [(vid, uid, start // 60, start % 60, '_'.join(names), split, label)
           for uid, (vid, start, names, split, label) in zip(uids, clips)])
    (base/'label2idx.json').write_text(json.dumps({name: i + 1 for i, name in enumerate(AVSS)}))
    palette = np.array([colour(c) for c in range(71)], np.uint8)
    for n, (uid, (_, _, names, split, label)) in enumerate(zip(uids, clips)):
        folder, seconds = base/label/uid, 10 if label == 'v2' else 5
        for t in range(seconds):
            save(folder/f'{before}frames'/f'{t}.jpg', frame(t, size))
            if t and split == 'train' and label == 'v1s': continue
            truth = labels(t, [AVSS.index(name) for name in names], size)
            if 'rgb' in kinds: save(folder/f'{before}labels_rgb'/f'{t}.png', palette[truth])
            if 'semantic' in kinds: save(folder/f'{before}labels_semantic'/f'{t}.png', truth)
        sound(folder/'audio.wav', seconds, 700 + 40 * n)
    return base


def everything(root, **variants):
    "All five subsets under one ROOT; returns it."
    s4(root); ms3(root); avss(root, **variants)
    return Path(root)
