"The proof, asked of cheats whose answers are known: one that hears everything, one that marks everything, one that marks nothing."
import json, math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ppqg_nb import listening, realmix, scenes
from ppqg_nb.core import SCENE_CLASSES
from ppqg_nb.listening import (ANSWERS, ASKED, TARGETS, ask, as_text, interval, is_right, largest, look, makers,
                               mean_J, mIoU, overlap, parts, prove, resampled, resamples, scored, silence, table)
from ppqg_nb.metrics import score

K, CLIPS = len(SCENE_CLASSES), 6


class Seen(list):
    def of(self, owner): return Seen(self[i] for i in owner)


class Cheat:
    "Knows the scenes by their frames and their patches; marks the visible objects that `choose(objects, heard)` says."
    def __init__(self, sets, choose, clips=CLIPS):
        self.config, self.choose, self.looks = SimpleNamespace(classes=SCENE_CLASSES), choose, 0
        self.visible, self.heard = {}, {}
        for make in sets.values():
            for i in range(clips):
                for s in make(i):
                    for frame, objects, patch, sounding in zip(s.frames, s.objects, s.patches, s.sounding):
                        self.visible[frame.numpy().tobytes()] = objects
                        self.heard[patch.numpy().tobytes()] = sounding.nonzero()[:, 0]

    def see(self, frames):
        self.looks += 1
        return Seen(self.visible[f.numpy().tobytes()] for f in frames)

    def hear(self, seen, patches, every_layer=True):
        assert not every_layer and len(seen) == len(patches)
        nothing = torch.zeros(0, dtype=torch.long)
        return [self.choose(o, self.heard.get(p.numpy().tobytes(), nothing)) for o, p in zip(seen, patches)]

    def compose(self, said): return torch.nn.functional.one_hot(torch.stack(said), K).permute(0, 3, 1, 2).float()


def listens(objects, heard): return objects * torch.isin(objects, heard)
def everything(objects, heard): return objects
def nothing(objects, heard): return 0 * objects


@pytest.fixture(scope='module')
def sets():
    "The sets of scenes, small"
    return {k: m for k, m in makers(SCENE_CLASSES, 'nowhere', size=48, steps=2).items() if callable(m)}


@pytest.fixture(scope='module')
def proof(sets): return prove(Cheat(sets, listens), sets, CLIPS, times=50)


@pytest.mark.parametrize('what', ['single M_J', 'multi M_J', 'semantic mIoU', 'semantic mIoU without background', 'single both right'])
def test_who_hears_everything_scores_one(proof, what): assert proof['scores'][what]['model'] == [1, 1, 1]


def test_who_hears_everything_marks_nothing_in_null_scenes(proof):
    assert proof['scores']['null marked']['model'] == [0, 0, 0]
    assert proof['scores']['null marked']['all objects'][0] > .02


def test_deaf_answers_never_get_a_pair_right(proof):
    s = proof['scores']['single both right']
    assert [s[a] for a in ANSWERS[1:4]] == [[0, 0, 0]] * 3


def test_without_sound_the_listener_marks_nothing(proof, sets):
    empty = [float((sets['single'](i)[0].labels == 0).flatten(1).all(1).double().mean()) for i in range(CLIPS)]
    assert proof['scores']['single M_J']['no sound'][0] == pytest.approx(np.mean(empty))


def test_another_sound_is_that_of_the_picture_before(proof, sets):
    wrong = []
    for i in range(CLIPS):
        s, other = sets['single'](i)[0], sets['single']((i - 1) % CLIPS)[0]
        wrong.append(mean_J(listens(s.objects, other.sounding.any(0).nonzero()[:, 0]), s.labels).item())
    assert proof['scores']['single M_J']['another sound'][0] == pytest.approx(np.mean(wrong), abs=1e-12)
    assert proof['scores']['single M_J']['another sound'][0] < 1


def test_all_objects_and_largest_by_hand(proof, sets):
    firsts = [sets['multi'](i)[0] for i in range(CLIPS)]
    for name, of in (('all objects', lambda o: o), ('largest object', largest)):
        values = [score((of(s.objects) > 0)[None].float(), (s.labels > 0)[None].long())['J'] for s in firsts]
        assert proof['scores']['multi M_J'][name][0] == pytest.approx(np.mean(values), abs=1e-12)


def test_who_marks_everything_equals_all_objects(sets):
    found = prove(Cheat(sets, everything), sets, CLIPS, times=20)['scores']
    for what, s in found.items():
        assert s['model'] == s['all objects'] == s['no sound'] == s['another sound'], what
        assert s['above']['model'] == [0, 0, 0]
    assert found['single both right']['model'][0] == 0


def test_who_marks_nothing(sets):
    found = prove(Cheat(sets, nothing), sets, CLIPS, times=20)['scores']
    assert found['null marked']['model'] == [0, 0, 0] and found['single both right']['model'] == [0, 0, 0]
    assert found['semantic mIoU without background']['model'][0] == 0 < found['semantic mIoU']['model'][0] < .2


def test_semantic_score_is_that_of_the_metric(sets):
    said = [sets['semantic'](i)[0] for i in range(CLIPS)]
    cheat = Cheat(sets, everything)
    maps = torch.stack([cheat.compose(list(s.objects)) for s in said])
    wanted = score(maps, torch.stack([s.labels for s in said]), 'avss', 'dataset')
    found = prove(cheat, dict(semantic=sets['semantic']), CLIPS, times=20)['scores']
    there = torch.stack([s.labels for s in said]).unique()
    assert found['semantic mIoU']['model'][0] == pytest.approx(wanted['J_by_class'][there].mean().item(), abs=1e-12)
    assert found['semantic mIoU without background']['model'][0] == pytest.approx(wanted['J_by_class'][there[1:]].mean().item(), abs=1e-12)


def test_the_visual_half_is_computed_once_for_a_picture(sets):
    cheat = Cheat(sets, listens)
    ask(cheat, sets['single'], 3, K)
    assert cheat.looks == 3


def test_proof_is_the_same_twice_and_ready_for_json(proof, sets):
    again = prove(Cheat(sets, listens), sets, CLIPS, times=50)
    assert again == proof and json.loads(json.dumps(proof)) == proof
    assert list(proof['scores']) == [f'{s} {m}' for s in sets for m in ASKED[s]]


def test_progress_counts_every_picture(sets):
    calls = []
    two = {k: sets[k] for k in ('multi', 'null')}
    prove(Cheat(two, nothing), dict(two, test1='not here'), 3, times=5, progress=lambda *a: calls.append(a))
    assert calls == [(i, 6) for i in range(1, 7)]


def test_one_clip_is_too_few(sets):
    with pytest.raises(ValueError, match='clips is 1; at least 2 are needed'): prove(Cheat({}, nothing), sets, 1)


# overlap and right

def test_overlap_of_an_absent_class_and_of_an_empty_mask():
    objects = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 1, 2]]])
    assert overlap(0 * objects, objects, 5).tolist() == [0] * 5
    assert overlap((objects == 1).long() * 4, objects, 5).tolist() == [0, 1, 0, 0, 0]
    assert overlap(objects, objects, 5)[1:3].tolist() == pytest.approx([3 / 5, 2 / 5])


@pytest.mark.parametrize('share, right', [(.4, False), (.6, True)])
def test_right_begins_above_one_half(share, right):
    objects = torch.zeros(2, 10, 10, dtype=torch.long)
    objects[:, :5, :4], objects[:, 5:, :4] = 3, 7
    found = torch.zeros_like(objects)
    found[:, :5, :round(4 * share) if share > .5 else 2] = 3
    s = SimpleNamespace(objects=objects, sounding=torch.tensor([[k == 3 for k in range(9)]] * 2))
    if right: found[:, :5, :3] = 3
    assert is_right(found, s, 9) is right


def test_exactly_one_half_is_not_right():
    objects = torch.zeros(1, 2, 4, dtype=torch.long)
    objects[0, 0] = 1
    found = torch.zeros_like(objects)
    found[0, 0, :2] = 1
    s = SimpleNamespace(objects=objects, sounding=torch.tensor([[False, True]]))
    assert overlap(found, objects, 2)[1] == .5 and not is_right(found, s, 2)


def test_a_pair_is_wrong_if_one_dub_is(sets):
    dubs = sets['single'](0)
    both = torch.stack([s.labels for s in dubs])
    assert parts(both, dubs, K)['both right'] == 1
    assert parts(both[[0, 0]], dubs, K)['both right'] == 0
    assert parts(both[[1, 0]], dubs, K)['both right'] == 0


def test_largest_changes_from_frame_to_frame():
    objects = torch.tensor([[[1, 1, 2, 0]], [[1, 2, 2, 0]], [[0, 0, 0, 0]]])
    assert largest(objects).tolist() == [[[1, 1, 0, 0]], [[0, 2, 2, 0]], [[0, 0, 0, 0]]]


def test_silence_is_the_logarithm_of_the_offset():
    assert silence(3).shape == (3, 96, 64) and torch.allclose(silence(3), torch.tensor(math.log(.01)))


def test_empty_frames_score_what_is_left_alone():
    truth = torch.zeros(2, 4, 4, dtype=torch.long)
    truth[1, 0] = 5
    found = torch.zeros_like(truth)
    found[0, 0, 0], found[1, 0] = 9, 8
    assert mean_J(found, truth) == pytest.approx((15 / 16 + 1) / 2)


# the bootstrap

def test_resamples_are_counts():
    w = resamples(7, 40)
    assert w.shape == (40, 7) and (w.sum(1) == 7).all() and torch.equal(w.round(), w) and (w > 1).any()
    assert torch.equal(w, resamples(7, 40)) and not torch.equal(w, resamples(7, 40, seed=1))


def test_bootstrap_of_right_and_wrong_is_binomial():
    n, k, times = 40, 30, 4000
    _, sample = resampled((torch.arange(n) < k).double(), times=times)
    exact = torch.tensor([math.comb(n, i) * (k / n)**i * (1 - k / n)**(n - i) for i in range(n + 1)], dtype=torch.float64)
    drawn = (sample * n).round().long().bincount(minlength=n + 1) / times
    assert (drawn.cumsum(0) - exact.cumsum(0)).abs().max() < 1.95 / times**.5


@pytest.mark.parametrize('n', [50, 500])
def test_bootstrap_interval_of_a_mean_is_that_of_the_normal_law(n):
    x = torch.from_numpy(np.random.default_rng(0).normal(.5, .2, n))
    value, low, high = interval(*resampled(x, times=4000))
    half = 1.96 * x.std(unbiased=False).item() / n**.5
    assert value == pytest.approx(x.mean().item()) and (high - low) / 2 == pytest.approx(half, rel=.06)


def test_a_constant_lead_has_no_spread():
    x = torch.rand(30, dtype=torch.float64)
    found = {name: {'M_J': x + (.25 if name == 'model' else 0)} for name in ANSWERS}
    s = scored(found, 'M_J', times=100)
    assert s['above']['model'] == pytest.approx([.25] * 3) and s['model'][2] - s['model'][1] > .05
    assert 'all objects' not in s['above']


def test_mIoU_leaves_absent_classes_out_and_counts_missed_ones():
    counts = torch.tensor([[[8., 1, 0, 0]], [[9., 3, 0, 2]], [[10., 2, 2, 0]]]).squeeze(1)
    assert mIoU(counts).item() == pytest.approx((8 / 11 + 1 / 4 + 0) / 3)
    assert mIoU(counts, 1).item() == pytest.approx(1 / 8)


# the sets and the table

def test_scenes_are_those_of_seed_two(sets):
    for kind in ('single', 'multi', 'semantic', 'null'):
        ours, theirs = sets[kind](3), scenes.dubs(2, 3, kind, len(sets[kind](3)), 48, 2)
        assert torch.equal(ours[0].frames, theirs[0].frames) and torch.equal(ours[0].labels, theirs[0].labels)
    assert len(sets['single'](0)) == 2 and len(sets['multi'](0)) == 1


def test_a_set_that_cannot_be_made_says_why():
    found = makers(scenes.CLASSES, 'nowhere')
    assert all('cannot be read' in found[side] for side in realmix.SIDES[1:])
    assert "no class 'disc'" in makers(('background', 'bell', 'bird'), 'nowhere')['multi']


def test_realmix_sets_are_of_their_tiers():
    try: media = realmix.open_media('/')
    except (OSError, ValueError) as e: pytest.skip(str(e))
    found = makers(SCENE_CLASSES, '/', size=48, steps=1)
    for side in realmix.SIDES[1:]:
        ours, theirs = found[side](2), realmix.dubs(media, 2, 2, 'single', 2, 48, 1, side=side)
        assert torch.equal(ours[1].frames, theirs[1].frames) and torch.equal(ours[1].waveform, theirs[1].waveform)
        names = [SCENE_CLASSES[k] for k in ours[0].objects.unique()]
        assert names == [n for n in SCENE_CLASSES if n in {realmix.CLASSES[k] for k in theirs[0].objects.unique()}]


def result_of(**values):
    "A result with the same values for every deaf answer"
    return dict(scores={w: v and {a: [v[0] if a == 'model' else v[1]] * 3 for a in ANSWERS} for w, v in values.items()}, missing={})


@pytest.mark.parametrize('what, value, deaf, met, stays', [
    ('single M_J', .85, .4, True, True), ('single M_J', .8499, .4, False, True), ('null marked', .01, .3, True, None),
    ('null marked', .011, .3, False, None), ('test3 M_J', .1, .2, None, True)])
def test_table_says_what_is_met(what, value, deaf, met, stays):
    row, = table(result_of(**{what: (value, deaf)}))
    assert (row['met'], row['deaf'], row['target']) == (met, stays, TARGETS.get(what))
    line = as_text(result_of(**{what: (value, deaf)})).splitlines()[1]
    assert line.endswith({True: 'met', False: 'MISSED', None: f'{deaf:.3f}'}[met])


def test_table_of_a_deaf_answer_above_all_objects():
    r = result_of(**{'multi M_J': (.9, .5)})
    r['scores']['multi M_J']['another sound'] = [.51] * 3
    assert table(r)[0]['deaf'] is False


def test_missing_sets_are_named_once():
    r = dict(result_of(**{'test1 M_J': None, 'test2 M_J': None}), missing=dict(test1='Not here.', test2='Not here.'))
    assert table(r)[0]['met'] is None and as_text(r).splitlines()[-1] == 'test1, test2: not asked. Not here.'


def test_command_writes_what_it_prints(tmp_path, monkeypatch, capsys, sets):
    cheat = Cheat(sets, listens, 2)
    cheat.state_dict = lambda: dict(w=torch.zeros(1))
    monkeypatch.setattr(listening.VCT, 'from_pretrained', lambda source: cheat)
    monkeypatch.setattr(listening, 'makers', lambda classes, root: dict(sets, test1=f'{root} is empty'))
    listening.main(['anything', '--clips', '2', '--realmix', 'there', '--out', str(tmp_path / 'r.json')])
    result = json.loads((tmp_path / 'r.json').read_text('utf-8'))
    assert result['model'] == 'anything' and result['missing'] == dict(test1='there is empty') and len(result['weights']) == 64
    assert as_text(result) in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ['r.json']


def test_command_ends_with_a_sentence(capsys):
    with pytest.raises(SystemExit) as e: listening.main(['no/such/model'])
    assert e.value.code == 1 and 'There is no folder no/such/model' in capsys.readouterr().err


def test_look_is_the_whole_model():
    from ppqg_nb.vct import VCT
    model, s = VCT.from_preset('scenes-tiny').eval(), scenes.pair(2, 0, 64, 2)
    sounds = torch.stack([x.patches for x in s])
    with torch.inference_mode(): whole = [model.compose(model(s[0].frames, p)).argmax(1) for p in sounds]
    assert (torch.stack(whole) == look(model, s[0].frames, sounds)).float().mean() > .999
