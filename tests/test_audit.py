"The audit of AVSBench: clean trees in each variant, then one damage after another, each found by kind and by name."
import csv, hashlib, json, os, shutil, struct, zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

import trees
from ppqg_nb import audit
from ppqg_nb.audit import NOTES, PROBLEMS, check

OBJECT, AVSS = 'AVSBench_object', 'AVSBench_semantic'
S4, MS3 = f'{OBJECT}/Single-source', f'{OBJECT}/Multi-sources'
CAT, VIOLIN, BELL = '0aB-cDeFgHi_10000_15000', '7aBcDeFgHiJ_0_10000', '-mNoPqRsTuV_8000_13000'
CAT_FRAME = f'{S4}/s4_data/visual_frames/train/cat_meowing/{CAT}/{CAT}_2.png'
CAT_SOUND = f'{S4}/s4_data/audio_wav/train/cat_meowing/{CAT}.wav'
PIANO, DUO = '3cDeFgHiJkL_5000_10000', '5gHi-kLmNoP_2000'
PIANO_MASK = f'{S4}/s4_data/gt_masks/test/playing_piano/{PIANO}/{PIANO}_3.png'
DUO_FRAME = f'{MS3}/ms3_data/visual_frames/{DUO}/{DUO}.mp4_4.png'
DUO_MASK = f'{MS3}/ms3_data/gt_masks/test/{DUO}/{DUO}_1.png'
V2, V1M = f'{AVSS}/v2/{VIOLIN}', f'{AVSS}/v1m/{BELL}'


@pytest.fixture(scope='module')
def clean(tmp_path_factory): return trees.everything(tmp_path_factory.mktemp('clean'))


@pytest.fixture
def root(clean, tmp_path): return Path(shutil.copytree(clean, tmp_path/'root'))


def kinds(findings): return [(f.kind, f.file) for f in findings if f.kind != 'count differs']


# Damages: each takes a path.
def gone(path): shutil.rmtree(path) if path.is_dir() else path.unlink()
def cut(path): path.write_bytes(path.read_bytes()[:-path.stat().st_size // 2])
def empty(path): path.write_bytes(b'')
def text(path): path.write_text('Not found')
def smaller(path): Image.open(path).resize((48, 40), Image.Resampling.NEAREST).save(path)
def folder(path): path.unlink(); path.mkdir()
def sparse(path): os.truncate(path, 2**26 + 1)
def as_jpeg(path): Image.open(path).convert('RGB').save(path, 'JPEG')
def blurred(path): Image.open(path).resize((28, 28)).resize((56, 56), Image.Resampling.BILINEAR).save(path)


def bomb(path):
    "A PNG of some dozen bytes that claims 100,000 × 100,000 pixels."
    def chunk(name, data): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 100000, 100000, 8, 2, 0, 0, 0)) +
                     chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b''))


def paint(value, where=np.s_[:5, :9], both=True):
    "Give some pixels of a mask a value, in the second label picture too."
    def damage(path):
        image = np.array(Image.open(path))
        image[where] = value
        picture = Image.fromarray(image)
        if path.is_relative_to(path.parents[4]/MS3): picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(path)
        if both: Image.fromarray(np.array([trees.colour(c) for c in range(71)], np.uint8)[image]).save(
            path.parent.parent/'labels_rgb'/path.name)
    return damage


def wav(samples, rate=8000):
    "Replace a sound."
    return lambda path: wavfile.write(path, rate, samples)


def tone(seconds, kind=np.int16, channels=1, rate=8000):
    t = np.arange(int(seconds * rate)) / rate
    return np.sin(2000 * t)[:, None].repeat(channels, 1).squeeze() * (8000 if kind is np.int16 else .5)


def rows(change):
    "Rewrite a CSV: `change` gets its lines, header first, as lists."
    def damage(path):
        with open(path, newline='') as f: lines = list(csv.reader(f))
        with open(path, 'w', newline='') as f: csv.writer(f).writerows(change(lines))
    return damage


def cell(line, column, value):
    def change(lines): lines[line][lines[0].index(column)] = value; return lines
    return rows(change)


def also(line, **cells):
    "Add a copy of a line with other cells."
    return rows(lambda lines: [*lines, [cells.get(c, v) for c, v in zip(lines[0], lines[line])]])


DAMAGES = {   # what is damaged, how, the kind, and the file that is named where it is another
    'frame gone': (CAT_FRAME, gone, 'missing frame'),
    'mask gone': (DUO_MASK, gone, 'missing mask'),
    'sound gone': (f'{V2}/audio.wav', gone, 'missing sound'),
    'frame cut off': (f'{V2}/frames/7.jpg', cut, 'damaged image'),
    'png cut off': (DUO_FRAME, cut, 'damaged image'),
    'mask cut off': (PIANO_MASK, cut, 'damaged image'),
    'text for a frame': (CAT_FRAME, text, 'damaged image'),
    'frame of 0 bytes': (CAT_FRAME, empty, 'empty file'),
    'sound of 0 bytes': (CAT_SOUND, empty, 'empty file'),
    'bomb for a frame': (CAT_FRAME, bomb, 'too large'),
    'bomb for a mask': (PIANO_MASK, bomb, 'too large'),
    'file of 64 MiB': (f'{V2}/audio.wav', sparse, 'too large'),
    'folder for a frame': (f'{V2}/frames/0.jpg', folder, 'unreadable file'),
    'mask smaller': (PIANO_MASK, smaller, 'mask of another size'),
    'frame smaller': (DUO_FRAME, smaller, 'frames of two sizes'),
    'no such class': (f'{V2}/labels_semantic/3.png', paint(90, both=False), 'value out of range'),
    'no such object': (DUO_MASK, paint(7, both=False), 'value out of range'),
    'colours mixed': (f'{V1M}/labels_rgb/1.png', blurred, 'unknown colour'),
    'two truths': (f'{V1M}/labels_rgb/0.png', paint(trees.colour(6), both=False), 'labels disagree'),
    'second truth smaller': (f'{V1M}/labels_rgb/0.png', smaller, 'labels disagree'),
    'a tiger': (f'{V2}/labels_semantic/9.png', paint(trees.AVSS.index('tiger')), 'mislabelled'),
    'text for a sound': (CAT_SOUND, text, 'damaged sound'),
    'sound cut off': (CAT_SOUND, cut, 'truncated sound'),
    'no samples': (CAT_SOUND, wav(np.zeros(0, np.int16)), 'empty sound'),
    'NaN': (CAT_SOUND, wav(np.full(40000, np.nan, np.float32)), 'sound not finite'),
    'one second': (f'{V2}/audio.wav', wav(tone(1).astype(np.int16)), 'short sound'),
    'no column': (f'{S4}/s4_meta_data.csv', rows(lambda lines: [line[:2] for line in lines]), 'damaged table'),
    'no rows': (f'{MS3}/ms3_meta_data.csv', rows(lambda lines: lines[:1]), 'damaged table'),
    'picture for a table': (f'{MS3}/ms3_meta_data.csv', lambda p: p.write_bytes(b'\x89PNG\r\n\x1a\n'), 'damaged table'),
    'same row twice': (f'{S4}/s4_meta_data.csv', also(2), 'row twice'),
    'leak': (f'{AVSS}/metadata.csv', also(1, split='test'), 'clip in two splits'),
    'split misspelt': (f'{MS3}/ms3_meta_data.csv', cell(1, 'split', 'tran'), 'bad row'),
    'category misspelt': (f'{S4}/s4_meta_data.csv', cell(1, 'category', 'cat_meow'), 'bad row'),
    'subset misspelt': (f'{AVSS}/metadata.csv', cell(1, 'label', 'v3'), 'bad row'),
    'name a path': (f'{MS3}/ms3_meta_data.csv', also(1, video_id='../x'), 'bad row'),
    'clip gone': (V2, gone, 'row without folder', f'{V2}/frames'),
    'table gone': (f'{MS3}/ms3_meta_data.csv', gone, 'missing table'),
    'frames gone': (f'{MS3}/ms3_data', gone, 'missing folder', f'{MS3}/ms3_meta_data.csv'),
    'classes from 0': (f'{AVSS}/label2idx.json', lambda p: p.write_text(json.dumps({c: i for i, c in enumerate(trees.AVSS)})),
                       'other classes'),
    'classes cut off': (f'{AVSS}/label2idx.json', cut, 'damaged table'),
    'classes in another order': (f'{AVSS}/label2idx.json', lambda p: p.write_text(json.dumps(
        {c: i + 1 for i, c in enumerate(['background', *trees.AVSS[:0:-1]])})), 'other classes'),
    'a class misspelt': (f'{AVSS}/label2idx.json', lambda p: p.write_text(p.read_text().replace('bell', 'bel')), 'other classes'),
}
ODDITIES = {
    'one pixel': (f'{V2}/labels_semantic/9.png', paint(trees.AVSS.index('tiger'), np.s_[0, :2]), 'stray pixels'),
    'four seconds of six': (CAT_SOUND, wav(tone(3.5).astype(np.int16)), 'sound ends early'),
    'silence': (CAT_SOUND, wav(np.zeros(40000, np.int16)), 'silent sound'),
    'jpeg inside': (CAT_FRAME, as_jpeg, 'wrong suffix'),
    'no row': (f'{AVSS}/metadata.csv', rows(lambda lines: lines[:-1]), 'folder without row', V2),
    'one mask more': (f'{S4}/s4_data/gt_masks/train/cat_meowing/{CAT}', lambda p: shutil.copy(p/f'{CAT}_1.png', p/f'{CAT}_2.png'),
                      'unexpected file'),
    'unknown name': (f'{AVSS}/metadata.csv', cell(4, 'a_obj', 'bell_birdie'), 'unknown class'),
    'no v2': (f'{AVSS}/v2', gone, 'subset not there'),
}


@pytest.mark.parametrize('case', DAMAGES)
def test_each_damage_has_a_kind_and_a_name(root, case):
    path, damage, kind, *named = DAMAGES[case]
    damage(root/path)
    report = check(root)
    assert kinds(report.problems) == [(kind, *(named or [path]))] and not report.ok
    assert kinds(report.notes) == [] and kind in PROBLEMS


@pytest.mark.parametrize('case', ODDITIES)
def test_each_oddity_is_a_note_and_no_damage(root, case):
    path, change, kind, *named = ODDITIES[case]
    change(root/path)
    report = check(root)
    assert kinds(report.notes) == [(kind, *(named or [path]))]
    assert report.problems == [] and report.ok and kind in NOTES


VARIANTS = {
    'as given out': {}, 'processed': dict(processed=True), 'colours only': dict(kinds=('rgb',)),
    'numbers only': dict(kinds=('semantic',)), 'two of three': dict(subsets=('v1s', 'v2'))}


@pytest.mark.parametrize('avss', VARIANTS)
@pytest.mark.parametrize('flip', [False, True])
def test_clean_trees_are_clean_in_each_variant(tmp_path, avss, flip):
    trees.s4(tmp_path, split_folder=not flip)
    trees.ms3(tmp_path, split_folder=flip)
    trees.avss(tmp_path, **VARIANTS[avss])
    report = check(tmp_path)
    assert report.ok and kinds(report.notes) == []
    assert list(report.found) == ['s4', 'ms3', 'avss']
    assert report.found['s4']['files'] == dict(frames=20, masks=12, sounds=4)
    assert report.found['ms3']['files'] == dict(frames=15, masks=15, sounds=3)
    assert ('visual_frames' in report.found['s4']['layout']) != flip
    assert ('visual_frames' in report.found['ms3']['layout']) == flip
    assert ('processed_frames' in report.found['avss']['layout']) == (avss == 'processed')
    assert all(f['others'] == {} for f in report.found.values())


def test_every_kind_is_tested():
    assert {case[2] for case in DAMAGES.values()} == set(PROBLEMS)
    assert {case[2] for case in ODDITIES.values()} == set(NOTES) - {'count differs', 'video in two splits'}


def test_clips_of_one_video_in_two_splits_are_a_note(tmp_path):
    trees.ms3(tmp_path, clips=[('-mNoPqRsTuV_8000', 'train'), ('-mNoPqRsTuV_9000', 'test'), ('-mNoPqRsTuV_10000', 'train')])
    note, = (n for n in check(tmp_path).notes if n.kind == 'video in two splits')
    assert note.text == 'has clips of one video: -mNoPqRsTuV_8000 in train, -mNoPqRsTuV_9000 in test.'


def test_counts_stand_beside_the_published_ones(clean):
    report = check(clean)
    assert report.rows()[:3] == [('s4', 'train', 2, 2, 3452), ('s4', 'val', 1, 1, 740), ('s4', 'test', 1, 1, 740)]
    assert ('v1m', 'val', 0, 0, None) in report.rows()
    assert report.rows()[-3:] == [('avss', 'train', 3, 3, 8498), ('avss', 'val', 1, 1, 1304), ('avss', 'test', 3, 3, 1554)]
    notes = [n for n in report.notes if n.kind == 'count differs']
    assert len(notes) == len(report.notes) == 9
    assert notes[0].text == 'has 2 clips of train; 3,452 were published.'
    assert report.found['avss']['files'] == dict(frames=45, masks=41, sounds=7)


@pytest.mark.parametrize('part', [OBJECT, S4, MS3, AVSS])
def test_root_may_be_a_part(clean, part):
    report = check(clean/part)
    assert report.ok and not any(f.file.startswith('..') for f in report.notes)
    assert list(report.found) == {OBJECT: ['s4', 'ms3'], S4: ['s4'], MS3: ['ms3'], AVSS: ['avss']}[part]


@pytest.mark.parametrize('samples', [
    (tone(5) / 80 + 128).astype(np.uint8), tone(5).astype(np.int16), tone(5, float).astype(np.float32), tone(5, float),
    (tone(5) * 2**15).astype(np.int32), tone(5, channels=6).astype(np.int16)])
@pytest.mark.parametrize('rate', [8000, 7999])
def test_sounds_of_many_makes_are_fine(root, samples, rate):
    wavfile.write(root/CAT_SOUND, rate, samples)
    assert check(root).ok


def spoil(root):
    "Five damages at once, and a note."
    for case in ('frame cut off', 'no such object', 'mask smaller', 'leak', 'NaN', 'one pixel'):
        path, damage, *_ = (DAMAGES | ODDITIES)[case]
        damage(root/path)
    return root


def test_several_damages_are_all_found_in_order_of_subset_and_table(root):
    report = check(spoil(root))
    assert [(p.subset, p.clip, p.kind) for p in report.problems] == [
        ('s4', CAT, 'sound not finite'), ('s4', PIANO, 'mask of another size'), ('ms3', DUO, 'value out of range'),
        ('avss', CAT, 'clip in two splits'), ('v2', VIOLIN, 'damaged image')]
    assert kinds(report.notes) == [('stray pixels', f'{V2}/labels_semantic/9.png')]
    assert report.problems[1].text == 'is 48 × 40 pixels, the frames 56 × 56.'


def test_one_worker_and_four_say_the_same(root):
    spoil(root)
    one, four = (check(root, workers=n).to_dict() for n in (1, 4))
    assert one == four and json.loads(json.dumps(one)) == one


def test_truncated_sounds_are_found_whatever_else_is_read_at_the_time(root):
    sounds = sorted(root.rglob('*.wav'))
    for path in sounds: cut(path)
    for _ in range(3): assert len(check(root, workers=8).problems) == len(sounds)


@pytest.mark.parametrize('spoilt', [False, True])
def test_nothing_is_changed(root, spoilt):
    def state(): return {str(p): (p.stat().st_mtime_ns, p.stat().st_mode, p.is_file() and hashlib.sha256(p.read_bytes()).hexdigest())
                         for p in [root, *root.rglob('*')]}
    if spoilt: spoil(root)
    everything = [root, *root.rglob('*')]
    for p in everything: p.chmod(0o555 if p.is_dir() else 0o444)
    before = state()
    check(root)
    assert state() == before
    for p in everything: p.chmod(0o755 if p.is_dir() else 0o644)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read everything')
def test_file_without_permission(root):
    (root/CAT_FRAME).chmod(0)
    assert kinds(check(root).problems) == [('unreadable file', CAT_FRAME)]


def test_file_that_the_disk_cannot_give(root, monkeypatch):
    def broken(path):
        if path.name == '7.jpg': raise OSError(5, 'Input/output error', str(path))
    monkeypatch.setattr(audit, 'decode', broken)
    report = check(root)
    assert [p.text for p in report.problems] == ['cannot be read (Input/output error).'] * 2


def test_pickles_and_other_things_are_counted_and_not_opened(root):
    mel = root/S4/'s4_data'/'audio_log_mel'/'train'
    mel.mkdir(parents=True)
    (mel/'x.pkl').write_bytes(b'cos\nsystem\n(S"exit 1"\ntR.')
    (root/V2/'audio.pkl').write_bytes(b'cos\nsystem\n(S"exit 1"\ntR.')
    (root/V2/'pre_SAM_mask').mkdir()
    report = check(root)
    assert report.ok and kinds(report.notes) == []
    assert report.found['s4']['others'] == {'audio_log_mel/': 1}
    assert report.found['avss']['others'] == {'.pkl': 1, 'pre_SAM_mask/': 1}


def test_progress_is_told_after_each_clip_and_may_stop_the_work(clean):
    told = []
    check(clean, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 14) for i in range(1, 15)]
    def stop(done, total): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): check(clean, workers=1, progress=stop)


@pytest.mark.parametrize('make, sentence', [
    (lambda p: p/'nowhere', 'There is no folder'),
    (lambda p: p.joinpath('file').write_text('') and None or p/'file', 'is a file'),
    (lambda p: p, 'is empty'),
    (lambda p: (p/'cityscapes').mkdir() or p, 'none of s4_meta_data.csv, ms3_meta_data.csv, metadata.csv')])
def test_root_without_avsbench_is_one_sentence(tmp_path, make, sentence):
    with pytest.raises(FileNotFoundError, match=sentence) as e: check(make(tmp_path))
    assert str(e.value).endswith('.') and '\n' not in str(e.value)


def test_workers_must_be_some(clean):
    with pytest.raises(ValueError, match='workers is 0; it must be at least 1.'): check(clean, workers=0)
