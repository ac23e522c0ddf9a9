"The command as a person types it."
import json, os, signal, subprocess, sys, time

import av
import numpy as np
import pytest
import torch
import trees
from PIL import Image
from typer.testing import CliRunner

from clips import noise, save
from ppqg_nb.core import BINARY_CLASSES, Config, example_path
from ppqg_nb.video import probe, read_frames, read_sound
from ppqg_nb.workshop import app

COMMAND = [sys.executable, '-c', 'from ppqg_nb.workshop import main; main()']
TIMES = np.arange(10)/10
KINDS = {
    'aac.mp4': dict(),
    'vp9.webm': dict(codecs=('libvpx-vp9', 'libopus'), rate=48000),
    'disc.mpg': dict(times=np.arange(25)/25, codecs=('mpeg2video', 'mp2'), fps=25),
    'uneven.mkv': dict(times=(0, 0.1, 0.13, 0.4, 0.45, 0.9), codecs=('libx264', 'flac')),
    'surround.mp4': dict(channels=6),
    'mp3.mkv': dict(codecs=('libx264', 'libmp3lame'), pix_fmt='yuv420p10le'),
}


def clip(path, channels=1, rate=44100, **options):
    "A second of picture with sound; `channels=0` leaves the sound out."
    return save(path, **dict(dict(times=TIMES, wave=noise(rate, channels)[:, :rate] if channels else None, rate=rate), **options))


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path):
    "An empty current folder, and text without colours, not wrapped."
    monkeypatch.chdir(tmp_path)
    for name, value in dict(COLUMNS='250', NO_COLOR='1', PYTHONIOENCODING='utf-8').items(): monkeypatch.setenv(name, value)


def ppqg(*args):
    "Exit code, standard output and standard error of the command, called in this process."
    done = CliRunner().invoke(app, [str(a) for a in args], prog_name='ppqg')
    return done.exit_code, done.stdout, done.stderr


def typed(*args):
    "The same, in a process of its own."
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, encoding='utf-8')
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize('name', KINDS)
def test_kinds_of_files(name, tmp_path):
    "Every kind becomes an MP4 for browsers, with its frames at their times, its length, and sound."
    source = clip(tmp_path/name, **KINDS[name])
    code, out, err = ppqg('segment', source, '-o', 'o.mp4', '--masks', 'maps')
    assert code == 0, err
    overlay = tmp_path/'o.mp4'
    frames, copies = list(read_frames(source)), list(read_frames(overlay))
    assert len(frames) == len(copies) == len(list((tmp_path/'maps').glob('*.png')))
    assert np.allclose([f.time for f in frames], [f.time for f in copies], atol=1e-3)
    with av.open(str(overlay)) as media: assert media.streams.video[0].codec_context.pix_fmt == 'yuv420p'
    data = overlay.read_bytes()
    assert 0 < data.index(b'moov') < data.index(b'mdat')
    before, after = probe(source), probe(overlay)
    assert after.codecs == ('h264', 'mp3' if name == 'mp3.mkv' else 'aac') and after.channels == before.channels
    assert abs(after.duration - before.duration) < 0.11          # a frame
    assert f'{len(frames)} frames' in out


def test_sound_is_copied_bit_by_bit(tmp_path):
    source = clip(tmp_path/'a.mp4')
    assert ppqg('segment', source)[0] == 0
    (x, _), (y, _) = read_sound(source), read_sound(tmp_path/'a_ppqg.mp4')
    assert (x == y).all()


def test_no_sound_is_a_sentence_unless_silent(tmp_path):
    source = clip(tmp_path/'mute.mp4', channels=0)
    code, out, err = ppqg('segment', source)
    assert code == 1 and '--silent' in err and not out and sorted(p.name for p in tmp_path.iterdir()) == ['mute.mp4']
    assert ppqg('segment', source, '--silent')[0] == 0
    assert probe(tmp_path/'mute_ppqg.mp4').rate == 0


def test_demo_writes_into_the_current_folder(tmp_path):
    code, out, err = typed('demo')
    assert code == 0 and 'RANDOM WEIGHTS' not in err and 'watch the mask jump' in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ppqg_demo.png', 'ppqg_demo_1.mp4', 'ppqg_demo_2.mp4']
    for i in (1, 2): assert probe(tmp_path/f'ppqg_demo_{i}.mp4').duration == pytest.approx(5, abs=0.05)


def test_label_maps_are_classes_in_colour(tmp_path):
    assert ppqg('segment', clip(tmp_path/'a.mp4'), '--masks', 'maps', '--fps', 2)[0] == 0
    maps = [np.array(Image.open(p)) for p in sorted((tmp_path/'maps').glob('*.png'))]
    assert len(maps) == 10 and {m.shape for m in maps} == {(48, 64)} and max(m.max() for m in maps) < 71
    assert all((maps[i] == maps[i - i % 5]).all() for i in range(10))      # held between the looks at 0 and 0.5 s


@pytest.mark.parametrize('args, code, words', [
    (['segment'], 2, 'Missing argument'),
    (['segment', 'a.mp4', '--siez', '64'], 2, '--size'),
    (['sgment', 'a.mp4'], 2, 'No such command'),
    (['segment', 'a.mp4', '-o', 'b.avi'], 2, '.mp4'),
    (['segment', 'a.mp4', '-o', 'b.mp4', '-o', 'c.webm'], 2, 'asked for twice'),
    (['segment', 'a.mp4', '-o', '-', '--json'], 2, 'standard output'),
    (['segment', 'a.mp4', '--start', 'soon'], 2, '--start'),
    (['segment', 'a.mp4', '--start', '0:03', '--end', '2'], 1, '0 ≤ start < end'),
    (['segment', 'a.mp4', '--start', '60'], 1, 'shorter'),
    (['segment', 'a.mp4', '--track', '1'], 1, 'none with number 1'),
    (['segment', 'a.mp4', '--view', '1'], 1, 'none with number 1'),
    (['segment', 'a.mp4', '--hold', 'cubic'], 1, "'last' or 'linear'"),
    (['segment', 'a.mp4', '--soft', 'text.mp4'], 1, 'is a file'),
    (['segment', 'a.mp4', '--cutout', 'b.mp4'], 1, '.webm or .mov'),
    (['segment', 'http://127.0.0.1:9/a.mp4'], 1, '--network'),
    (['segment', 'b.mp4'], 1, 'no file'),
    (['segment', '.'], 2, 'one folder of results'),
    (['segment', 'a.mp4', 'text.mp4'], 2, 'one folder of results'),
    (['segment', '.', '-o', 'new', '--masks', 'm'], 2, 'one folder of results'),
    (['segment', 'a*.mp4', '-o', 'new', '--kinds', 'film'], 2, "'film'"),
    (['segment', 'b*.mp4', '-o', 'new'], 1, 'holds no film'),
    (['segment', '.', '-o', 'new', '--shard', '3/2'], 1, '3/2'),
    (['segment', '.', '-o', 'new', '--jobs', '0'], 1, 'jobs is 0'),
    (['segment', 'text.mp4'], 1, 'FFmpeg'),
    (['segment', 'cut.mp4'], 1, 'FFmpeg'),
    (['segment', 'sound.wav'], 1, 'sound'),
    (['segment', 'a.mp4', '-o', 'a.mp4', '--overwrite'], 1, 'input itself'),
    (['segment', 'a.mp4', '-o', 'full.mp4'], 1, '--overwrite'),
    (['segment', 'a.mp4', '-o', 'nowhere/b.mp4'], 1, 'no folder'),
    (['segment', 'a.mp4', '--masks', 'text.mp4'], 1, 'is a file'),
    (['segment', 'a.mp4', '--preset', 'huge'], 1, 'scenes-tiny'),
    (['segment', 'a.mp4', '--preset', 'released-ms3-swin-base-384'], 1, 'region'),
    (['segment', 'a.mp4', '--device', 'tpu'], 1, 'cpu'),
    (['segment', 'a.mp4', '--size', '8'], 1, '32'),
    (['segment', 'a.mp4', '--fps', '-1'], 1, 'above 0'),
    (['segment', 'a.mp4', '--weights', 'missing-folder'], 1, 'missing-folder'),
    (['segment', 'a.mp4', '--regions', 'sam2'], 1, "'classic'"),
    (['segment', 'a.mp4', '--regions', 'classic'], 1, 'region'),           # scenes-tiny reads none
    (['data', 'check', 'nowhere'], 1, 'nowhere'),
    (['data', 'check', 'a.mp4'], 1, 'is a file'),
    (['data', 'check', '.'], 1, 'metadata.csv'),
    (['data', 'scenes'], 2, 'Missing argument'),
    (['data', 'scenes', 'new', '--clips', 'many'], 2, '--clips'),
    (['data', 'scenes', 'new', '--clips', '0'], 1, 'at least 1'),
    (['data', 'scenes', 'new', '--clips', '3', '--dubs', '2'], 1, 'multiple of dubs'),
    (['data', 'scenes', 'new', '--dubs', '0'], 1, 'multiple of dubs'),
    (['data', 'scenes', 'new', '--kind', 'duo'], 1, 'semantic'),
    (['data', 'scenes', 'new', '--split', 'test1'], 1, 'train, val, test'),
    (['data', 'scenes', 'new', '--task', 's4'], 1, 'avss or ms3'),
    (['data', 'scenes', 'new', '--size', '8'], 1, '32'),
    (['data', 'scenes', 'new', '--seed', '-1'], 1, 'seed is -1'),
    (['data', 'scenes', '.'], 1, 'made.json'),
    (['data', 'scenes', 'a.mp4'], 1, 'is a file'),
    (['data', 'realmix', 'new', '--split', 'val'], 1, 'test1, test2, test3'),
    (['data', 'realmix', 'new', '--root', 'nowhere'], 1, 'tuxpaint-stamps-default'),
    (['evaluate', 'mine', '.', '--task', 's4', '--convention', 'mean'], 2, 'released'),
    (['evaluate', 'mine', '.', '--task', 's5'], 1, 'avss'),
    (['evaluate', 'mine', '.', '--task', 's4'], 1, 's4_meta_data.csv'),
    (['convert', 'text.mp4', '-o', 'new'], 1, 'text.mp4'),
    (['convert', 'missing.pth', '-o', 'new'], 1, 'missing.pth'),
    (['convert', 'text.mp4', '-o', 'full.mp4'], 1, 'full.mp4'),
], ids=lambda a: ' '.join(a) if isinstance(a, list) else None)
def test_mistakes_are_sentences(args, code, words, tmp_path):
    "The right code, no traceback, and nothing written."
    whole = clip(tmp_path/'a.mp4').read_bytes()
    (tmp_path/'text.mp4').write_text('this is no video')
    (tmp_path/'cut.mp4').write_bytes(whole[:len(whole)//2])
    (tmp_path/'full.mp4').write_bytes(b'somebody else wrote this')
    with av.open(str(tmp_path/'sound.wav'), 'w') as out:
        stream = out.add_stream('pcm_s16le', rate=16000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), 's16', 'mono')
        frame.rate = 16000
        out.mux(stream.encode(frame))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    found, out, err = ppqg(*args)
    assert found == code, err
    assert words in out + err and 'Traceback' not in err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_everything_in_one_run(tmp_path):
    source, names = clip(tmp_path/'a.mp4'), ('o.webm', 'o.csv', 'o.parquet', 'o.json', 'o.vtt', 'o.png', 'maps')
    code, out, err = ppqg('segment', source, *(x for n in names for x in ('-o', n)), '--soft', 'soft', '--cutout', 'cut.mov', '--fps', 5)
    assert code == 0 and not err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['a.mp4', 'soft', 'cut.mov', *names])
    assert [line.split(':')[0] for line in out.splitlines()] == [*names, 'soft', 'cut.mov']
    for folder in ('maps', 'soft'): assert len(list((tmp_path/folder).iterdir())) == 10
    for film in ('o.webm', 'cut.mov'): assert len(list(read_frames(tmp_path/film))) == 10
    code, _, err = ppqg('segment', source, '-o', 'maps')
    assert code == 1 and 'is not empty' in err and '--overwrite' in err
    assert ppqg('segment', source, '-o', 'maps', '--overwrite')[0] == 0


def test_lines_of_json(tmp_path):
    "One a look on standard output and nothing else there; no overlay that was not asked for."
    source = clip(tmp_path/'a.mp4')
    code, out, err = ppqg('segment', source, '--json', '--fps', 5)
    assert code == 0 and not err and [json.loads(line)['time'] for line in out.splitlines()] == [0, .2, .4, .6, .8]
    assert [p.name for p in tmp_path.iterdir()] == ['a.mp4']
    code, out, err = ppqg('segment', source, '--json', '--fps', 5, '--start', '0:00.15', '--end', '.7', '-o', 'o.mp4')
    assert code == 0 and 'o.mp4: 5 frames' in err and [json.loads(line)['time'] for line in out.splitlines()] == [.2, .4, .6]
    assert [f.time for f in read_frames(tmp_path/'o.mp4')] == pytest.approx([0, .1, .2, .3, .4], abs=.001)
    code, out, err = ppqg('segment', source, '--json', '--fps', 5, '--hold', 'linear')
    assert code == 0 and len(out.splitlines()) == 9         # a mask of its own for each frame up to the last look


def test_pipes(tmp_path):
    "In from standard input, out to standard output, in real processes; a reader that leaves is no error of ours."
    source = clip(tmp_path/'a.mp4')
    assert ppqg('segment', source, '-o', 'o.mp4')[0] == 0
    with open(source, 'rb') as file: done = subprocess.run([*COMMAND, 'segment', '-', '-o', '-'], stdin=file, capture_output=True)
    assert done.returncode == 0 and done.stdout == (tmp_path/'o.mp4').read_bytes() and not done.stderr
    code, _, err = typed('segment', '-', '--json')
    assert code == 1 and 'Nothing came through the pipe' in err
    with subprocess.Popen([*COMMAND, 'segment', str(source), '--json'], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert not process.stderr.read() and process.wait() == 141
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.mp4', 'o.mp4']


def test_an_address_is_loaded_only_if_allowed(tmp_path):
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread
    clip(tmp_path/'a.mp4')
    asked = []
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args): asked.append(args)
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}/a.mp4?x=1'
        code, _, err = ppqg('segment', address)
        assert code == 1 and '--network' in err and not asked
        code, out, err = ppqg('segment', address, '--network', '-o', 'o.mp4')
        server.shutdown()
    assert code == 0 and asked and probe(tmp_path/'o.mp4').rate == 44100, err


@pytest.mark.parametrize('name', ["it's a film.mp4", 'say "hi".mp4', 'film 🎻.mp4', '-start.mp4', 'a:b.mp4', 'a%20b#c?.mp4', '[x]{y}.mp4',
                                  pytest.param('two\nlines.mp4', marks=pytest.mark.skipif(sys.platform == 'win32', reason='no such names there'))])
def test_names_of_files(name, tmp_path):
    "Any name works, and is one line on the screen."
    clip(tmp_path/name)
    code, out, err = ppqg('segment', '--fps', 2, '--', name)
    assert code == 0 and [p.name for p in tmp_path.iterdir() if p.name != name] == [f'{name[:-4]}_ppqg.mp4'], err
    assert len(out.splitlines()) == 1
    (tmp_path/name).write_text('no film')
    code, _, err = ppqg('segment', '--overwrite', '--', name)
    assert code == 1 and len(err.splitlines()) == 1 and 'FFmpeg' in err


def test_many_films(tmp_path):
    "A line for the one that is none, the rest done; gone on with, as JSON, on two processes, from a pattern and from a list."
    (tmp_path/'films'/'more').mkdir(parents=True)
    for name in ('a.mp4', 'more/b.mkv'): clip(tmp_path/'films'/name)
    (tmp_path/'films'/'bad.mp4').write_text('no film')
    code, out, err = ppqg('segment', 'films', '-o', 'one', '--fps', 2, '--kinds', 'overlay.webm,csv,labels')
    assert code == 1 and out == '2 done, 0 skipped, 1 failed\n' and err.startswith('bad.mp4: ') and len(err.splitlines()) == 1
    made = {p.relative_to(tmp_path/'one').as_posix(): p.read_bytes() for p in (tmp_path/'one').rglob('*') if p.is_file() and p.suffix in ('.webm', '.csv', '.png')}
    assert len(made) == 2 * (2 + 10) and 'more/b.mkv.overlay.webm' in made
    code, _, err = ppqg('segment', 'films', '-o', 'one', '--fps', 2)
    assert code == 1 and '--resume' in err
    code, out, _ = ppqg('segment', 'films', '-o', 'one', '--fps', 2, '--kinds', 'overlay.webm,csv,labels', '--resume', '--json')
    assert code == 1 and json.loads(out)['skipped'] == ['a.mp4', 'more/b.mkv'] and list(json.loads(out)['failed']) == ['bad.mp4']
    (tmp_path/'films'/'bad.mp4').unlink()
    (tmp_path/'list.txt').write_text('films/a.mp4\nfilms/more/b.mkv\n')
    code, out, err = typed('segment', 'films/**/*.m*', '-o', 'two', '--fps', '2', '--kinds', 'overlay.webm,csv,labels', '--jobs', '2')
    assert code == 0 and out == '2 done, 0 skipped, 0 failed\n' and not err
    assert all((tmp_path/'two'/name).read_bytes() == data for name, data in made.items())
    assert ppqg('segment', 'list.txt', '-o', 'three', '--fps', 2, '--quiet') == (0, '', '')
    assert len(list((tmp_path/'three').rglob('*.mp4'))) == 2
    shards = [json.loads(ppqg('segment', 'films', '-o', 'four', '--fps', 1, '--shard', f'{i}/2', '--json')[1])['done'] for i in (1, 2)]
    assert sorted(sum(shards, [])) == ['a.mp4', 'more/b.mkv']


def test_quiet_and_verbose(tmp_path):
    source = clip(tmp_path/'a.mp4')
    assert ppqg('segment', source, '--quiet') == (0, '', '')
    assert 'exists' in ppqg('segment', source, '-q')[2]
    code, out, err = ppqg('segment', source, '--verbose', '--overwrite')
    assert code == 0 and 'a_ppqg.mp4: 10 frames' in out and 'cpu, 128 pixels, batches of 1, 1 abreast, every frame: ' in err


def test_large_models_look_once_a_second():
    from types import SimpleNamespace
    from ppqg_nb.cli import looks_a_second
    def of(numbers): return SimpleNamespace(model=SimpleNamespace(parameters=lambda: [torch.empty(numbers, device='meta')] * 3))
    assert [looks_a_second(of(n), fps) for n in (10**6, 10**8) for fps in (None, 5.)] == [None, 5, 1, 5]


def test_warnings_are_lines(tmp_path):
    source = clip(tmp_path/'a.ts', codecs=('mpeg2video', 'mp2'), fps=25)
    data = bytearray(source.read_bytes())
    data[len(data)//2:len(data)//2 + 400] = bytes(400)
    source.write_bytes(data)
    code, _, err = ppqg('segment', source)
    assert code == 0 and all(line.startswith('Warning: ') and line.endswith('.') for line in err.splitlines())


def test_colours_only_where_they_are_wanted(tmp_path, monkeypatch):
    for name in ('NO_COLOR', 'COLUMNS'): monkeypatch.delenv(name, raising=False)
    assert '\x1b' not in typed('segment', 'nix.mp4')[2]
    monkeypatch.setenv('FORCE_COLOR', '1')
    assert '\x1b[1;31m' in typed('segment', 'nix.mp4')[2]
    monkeypatch.setenv('NO_COLOR', '1')
    assert '31m' not in typed('segment', 'nix.mp4')[2]


def test_tables_as_json():
    code, out, _ = ppqg('info', '--json')
    assert code == 0 and json.loads(out)['presets']['scenes-tiny']['pixels'] == 128
    code, out, _ = ppqg('demo', '--json')
    assert code == 0 and len(json.loads(out)) == 2 and all(0 <= v <= 1 for row in json.loads(out) for v in row['marked'].values())


def test_completion_is_installed_by_typer():
    named = os.environ | dict(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION='1')        # the shell is named, not looked for
    done = subprocess.run([*COMMAND, '--show-completion', 'bash'], capture_output=True, text=True, env=named)
    assert done.returncode == 0 and '_PPQG_COMPLETE' in done.stdout


def test_debug_shows_the_traceback():
    code, _, err = typed('segment', 'nix.mp4', '--debug')
    assert code == 1 and 'Traceback' in err


@pytest.mark.skipif(sys.platform == 'win32', reason='signals of POSIX')
@pytest.mark.parametrize('kill', [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing_half_written(kill, tmp_path):
    clip(tmp_path/'long.mp4', times=np.arange(3000)/25)
    (tmp_path/'o.mp4').write_bytes(b'the result of yesterday')
    args = ['segment', 'long.mp4', '-o', 'o.mp4', '--masks', 'maps', '--overwrite']
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)      # a shell's background jobs ignore it
    process = subprocess.Popen(COMMAND + args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=default)
    while not any(p.name.startswith('.maps') and any(p.iterdir()) for p in tmp_path.iterdir()):      # until it is at work
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(kill)
    assert process.wait(60) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ['long.mp4', 'o.mp4']
    assert (tmp_path/'o.mp4').read_bytes() == b'the result of yesterday'


def test_weights_of_ones_own_carry_no_note(tmp_path):
    from ppqg_nb.vct import VCT
    VCT.from_preset('scenes-tiny').save_pretrained(tmp_path/'mine')
    code, _, err = ppqg('segment', clip(tmp_path/'a.mp4'), '--weights', 'mine')
    assert code == 0 and 'RANDOM' not in err


def tiny(folder, **changes):
    "A folder with a small model of two classes."
    from ppqg_nb.vct import VCT
    torch.manual_seed(0)
    VCT(Config(**dict(classes=BINARY_CLASSES, sounds=(), queries='group', prototypes='none', image_size=64, hidden=16,
                      num_queries=4, pixel_mlp=(8,), layers=2, heads=2, ffn=16, vggish_width=.05, backbone='resnet10t',
                      backbone_options=dict(output_stride=32)) | changes)).save_pretrained(folder)
    return folder


def test_segment_with_region_maps(tmp_path):
    tiny(tmp_path/'mine', regions=True)
    source = clip(tmp_path/'a.mp4')
    code, _, err = ppqg('segment', source, '--weights', 'mine')
    assert code == 1 and '--regions classic' in err
    code, _, err = ppqg('segment', source, '--weights', 'mine', '--regions', 'classic', '--fps', 2)
    assert code == 0 and probe(tmp_path/'a_ppqg.mp4').duration == pytest.approx(1, abs=.11), err


def test_data_check(tmp_path):
    trees.everything(tmp_path/'bench')
    code, out, _ = ppqg('data', 'check', 'bench')
    assert code == 0 and 'Nothing is damaged' in out and '3452' in out and all(t in out for t in ('S4', 'MS3', 'AVSS'))
    broken = next((tmp_path/'bench').rglob('*.wav'))
    broken.write_bytes(b'')
    code, out, _ = ppqg('data', 'check', 'bench')
    assert code == 1 and broken.relative_to(tmp_path/'bench').as_posix() in out
    code, out, _ = ppqg('data', 'check', 'bench', '--json', '--workers', 1)
    assert code == 1 and [p['file'] for p in json.loads(out)['problems']] == [broken.relative_to(tmp_path/'bench').as_posix()]


def test_data_scenes(tmp_path):
    "Made, gone on with, other splits beside, checked, and read as what the generator makes."
    from ppqg_nb.data import AVSBench
    from ppqg_nb.scenes import CLASSES, Scenes
    line = ['data', 'scenes', 'shapes', '--kind', 'single', '--size', 32, '--dubs', 2, '--clips']
    code, out, err = ppqg(*line, 4)
    assert code == 0 and '4 clips of test, 4 of them made now' in out and 'ppqg data check shapes' in out and not err, err
    before = {p: p.read_bytes() for p in (tmp_path/'shapes').rglob('*.*') if p.is_file()}
    assert '0 of them made now' in ppqg(*line, 4)[1] and '6 clips of test, 2 of them made now' in ppqg(*line, 6)[1]
    assert [p.name for p in before if p.read_bytes() != before[p]] == ['metadata.csv']
    for split in ('train', 'val'):
        code, out, err = ppqg('data', 'scenes', 'shapes', '--split', split, '--clips', 3, '--size', 32)
        assert code == 0 and f'--split {split}' in out, err
    for split, source in dict(test=Scenes(2, 'single', 32, length=3, dubs=2), train=Scenes(0, size=32, length=3), val=Scenes(1, size=32, length=3)).items():
        found = AVSBench('shapes', 'avss', split)
        assert found.classes == CLASSES and [c.name for c in found] == [e.name for e in source.entries]
        for a, b in zip(found, source): assert torch.equal(a.labels, b.labels) and torch.equal(a.waveform, b.waveform)
    code, out, _ = ppqg('data', 'check', 'shapes')
    assert code == 0 and 'Nothing is damaged' in out and 'published' in out and '1554' not in out
    code, _, err = ppqg('data', 'scenes', 'shapes', '--kind', 'multi')
    assert code == 1 and "was made with kind 'single'" in err
    code, _, err = ppqg('data', 'scenes', 'shapes', '--split', 'val', '--seed', 2)
    assert code == 1 and 'was made with seed 1, and 2' in err


def test_data_scenes_as_ms3_and_as_films(tmp_path):
    assert ppqg('data', 'scenes', 'shapes', '--task', 'ms3', '--clips', 2, '--size', 64, '--video')[0] == 0
    code, out, _ = ppqg('data', 'check', 'shapes', '--json')
    assert code == 0 and json.loads(out)['found']['ms3']['files'] == dict(frames=10, masks=10, sounds=2)
    film = sorted((tmp_path/'shapes'/'videos').iterdir())[0]
    assert ppqg('segment', film, '--fps', 1)[0] == 0 and probe(tmp_path/f'{film.stem}_ppqg.mp4').duration == pytest.approx(5, abs=.1)


@pytest.mark.skipif(sys.platform == 'win32', reason='signals of POSIX')
def test_data_scenes_interrupted_and_gone_on_with(tmp_path):
    args = ['data', 'scenes', 'a', '--clips', '60']
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(COMMAND + args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=default)
    while not list(tmp_path.glob('a/*/v1m/*/audio.wav')):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and not list(tmp_path.rglob('*.part'))
    for name in 'ab': assert ppqg('data', 'scenes', name, '--clips', 60)[0] == 0
    a, b = ({p.relative_to(tmp_path/n): p.read_bytes() for p in (tmp_path/n).rglob('*') if p.is_file()} for n in 'ab')
    assert a == b


def test_data_realmix(tmp_path, monkeypatch):
    "From media that are made up; the three tests are the test split of three folders."
    from ppqg_nb import making, realmix
    from ppqg_nb.scenes import Scenes
    class Made(Scenes):
        def __init__(self, media, *args, side, **more):
            super().__init__(*args, **more)
            self.media, self.side = media, side
    asked = []
    monkeypatch.setattr(realmix, 'open_media', lambda root: asked.append(root) or 'media')
    monkeypatch.setattr(realmix, 'Realmix', Made)
    for side, split, seed in (('train', 'train', 0), ('test1', 'test', 2), ('test3', 'test', 2)):
        code, out, err = ppqg('data', 'realmix', side, '--split', side, '--clips', 2, '--size', 32, '--root', 'there')
        assert code == 0 and f'2 clips of {split}' in out and 'own use' in out, err
        made = json.loads((tmp_path/side/'made.json').read_text())
        assert made['source'] == 'Made' and {k: made['splits'][split][k] for k in ('seed', 'side')} == dict(seed=seed, side=side)
    code, _, err = ppqg('data', 'realmix', 'test1', '--split', 'test3', '--clips', 2, '--size', 32)
    assert code == 1 and "side 'test1', and 'test3'" in err and [str(r) for r in asked] == ['there'] * 3 + ['/']


def test_a_model_of_more_classes_is_scored_by_name(tmp_path):
    from ppqg_nb.scenes import CLASSES
    names = ('background', 'bell', *CLASSES[:0:-1])
    tiny(tmp_path/'mine', classes=names, sounds=names); tiny(tmp_path/'few', classes=CLASSES[:5], sounds=())
    assert ppqg('data', 'scenes', 'shapes', '--clips', 2, '--size', 32, '--kind', 'single')[0] == 0
    code, out, err = ppqg('evaluate', 'mine', 'shapes', '--task', 'avss', '--workers', 0, '--json')
    assert code == 0, err
    rows = {row['class']: row['frames'] for row in json.loads(out)['classes']}
    assert list(rows) == list(names) and rows['background'] == 10 and rows['bell'] == 0 and sum(rows.values()) > 15
    code, _, err = ppqg('evaluate', 'few', 'shapes', '--task', 'avss')
    assert code == 1 and 'a task of its own (5 classes' in err


def test_evaluate(tmp_path):
    "A table, JSON, and the same files when it goes on where it was broken off."
    tiny(tmp_path/'mine'); trees.s4(tmp_path/'bench', clips=[(f'clip{i}', 0, 'cat_meowing', 'test') for i in range(3)])
    code, out, err = ppqg('evaluate', 'mine', 'bench', '--task', 's4', '--workers', 0)
    assert code == 0 and all(word in out for word in ('frame', 'released', 'dataset', 'of 15 frames')), err
    whole = {p.name: p.read_bytes() for p in (tmp_path/'ppqg_s4_test').iterdir()}
    assert len(whole) == 5
    code, _, err = ppqg('evaluate', 'mine', 'bench', '--task', 's4', '--workers', 0)
    assert code == 1 and '--resume' in err
    (tmp_path/'half').mkdir()
    (tmp_path/'half'/'clips.jsonl').write_bytes(b'\n'.join(whole['clips.jsonl'].split(b'\n')[:2]) + b'\n{"na')
    code, out, _ = ppqg('evaluate', 'mine', 'bench', '--task', 's4', '--workers', 0, '-o', 'half', '--resume', '--convention', 'released')
    assert code == 0 and 'released' in out and 'dataset' not in out
    assert {p.name: p.read_bytes() for p in (tmp_path/'half').iterdir()} == whole
    code, out, _ = ppqg('evaluate', 'mine', 'bench', '--task', 's4', '--workers', 0, '--limit', 1, '-o', 'one', '--json')
    assert code == 0 and json.loads(out)['frames'] == 5


def test_evaluate_with_the_wrong_weights(tmp_path):
    tiny(tmp_path/'mine'); trees.avss(tmp_path/'bench')
    code, _, err = ppqg('evaluate', 'mine', 'bench', '--task', 'avss')
    assert code == 1 and 's4 or ms3' in err and 'avss' in err and not (tmp_path/'ppqg_avss_test').exists()


def test_a_checkpoint_is_converted_and_used(tmp_path):
    "The released format at full size, less the numbers: each tensor is one number, stored once."
    from test_checkpoints import synthetic
    torch.save(synthetic('ms3', full=False), tmp_path/'model_best.pth')
    code, out, err = ppqg('convert', 'model_best.pth', '-o', 'ms3')
    assert code == 0 and 'released-ms3-swin-base-384' in out and 'dropped' in out, err
    assert sorted(p.name for p in (tmp_path/'ms3').iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    code, _, err = ppqg('convert', 'model_best.pth', '-o', 'other', '--preset', 'released-avss-swin-base-384')
    assert code == 1 and 'released-ms3-swin-base-384' in err and not (tmp_path/'other').exists()


def test_help_and_info():
    code, out, _ = typed('--help')
    assert code == 0 and all(word in out for word in ('segment', 'demo', 'info', 'evaluate', 'convert', 'data', 'ppqg demo'))
    code, out, _ = typed('data', '--help')
    assert code == 0 and all(word in out for word in ('scenes', 'realmix', 'check'))
    code, out, _ = typed('info')
    assert code == 0 and all(word in out for word in ('torch', 'FFmpeg', 'cpu', 'scenes-tiny', 'released-avss-swin-base-384'))


def test_help_does_not_wait_for_torch():
    code = "import sys; from ppqg_nb import workshop; sys.exit(bool({'torch', 'av', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_overlay_of_the_example_is_the_same_each_time(tmp_path):
    results = []
    for name in ('one.mp4', 'two.mp4'):
        assert typed('segment', str(example_path()), '-o', name, '--fps', '2')[0] == 0
        results.append((tmp_path/name).read_bytes())
    assert results[0] == results[1]
