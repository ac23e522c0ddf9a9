"What each stage costs has not changed by more than 2 % since the table was written: python -m ppqg_nb.benchmarks"
import json

import pytest
import torch

from ppqg_nb import benchmarks, decoder, pixel_decoder
from ppqg_nb.benchmarks import TABLE, bench, changed, clip_memory, costs, growth, write_table
from ppqg_nb.core import PRESETS, preset
from ppqg_nb.vct import VCT, offline


@pytest.fixture(scope='module')
def table(): return json.loads(TABLE.read_text(encoding='utf-8'))


@pytest.mark.parametrize('name', PRESETS)
def test_costs_are_those_of_the_table(name, table):
    told = changed(costs(PRESETS[name]), table['presets'][name])
    assert told == [], f'{name}, with torch {torch.__version__}; the table is of torch {table["versions"]["torch"]}'


def test_the_table_has_every_preset(table): assert set(table['presets']) == set(PRESETS)


def test_more_work_is_seen_in_its_stage(table, monkeypatch):
    wanted = table['presets']['scenes-tiny']
    monkeypatch.setattr(pixel_decoder, 'deformable_attention', benchmarks.stacked)
    told = changed(costs(preset('scenes-tiny')), wanted)
    assert told and all(line.startswith('pixel decoder: ') for line in told)
    monkeypatch.undo()
    mask = decoder.attention_mask
    monkeypatch.setattr(decoder, 'attention_mask', lambda z: mask(z.clone()) & mask(z))
    told = changed(costs(preset('scenes-tiny')), wanted)
    assert told and all(line.startswith('decoder: ') for line in told)


def test_less_work_and_missing_stages_are_told_too():
    one = dict(decoder=dict(multiply_adds=1000, operators=10, peak_bytes=0))
    assert changed(one, one) == []
    assert changed(dict(decoder=dict(one['decoder'], multiply_adds=1019)), one) == []
    assert changed(dict(decoder=dict(one['decoder'], multiply_adds=970)), one) == ['decoder: multiply_adds 1,000 -> 970 (-3.0%).']
    assert changed({}, one) == ['decoder is in one of the two only.']


def test_the_table_is_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, 'PRESETS', {'scenes-tiny': preset('scenes-tiny')})
    write_table(tmp_path/'costs.json')
    first = json.loads((tmp_path/'costs.json').read_text())
    assert list(first['presets']) == ['scenes-tiny'] and [p.name for p in tmp_path.iterdir()] == ['costs.json']


def test_a_frame_of_another_size_grows_as_it_must():
    found = growth(preset('scenes-tiny'), 1, 128, 'pixels', 1, names=('audio', 'pixel decoder'))
    assert found['audio']['multiply_adds'] == 0 and found['pixel decoder']['multiply_adds'] == 1


def test_more_frames_take_no_more_memory_beside_what_they_give():
    model = VCT(offline(preset('scenes-tiny'))).eval().requires_grad_(False)
    four, eight = clip_memory(model, 384, counts=(4, 8))
    assert eight['output_bytes'] == 2 * four['output_bytes']
    assert eight['peak_bytes'] - eight['output_bytes'] < 1.1 * (four['peak_bytes'] - four['output_bytes'])


def test_training_and_bad_requests():
    found = bench(size=64, names=('forward and backward',), train=True, quick=True)
    assert found['stages']['forward and backward']['rate'] > 0 and found['stages']['forward and backward']['peak_bytes'] > 2**20
    assert found['growth'] == {}
    for wrong in (dict(names=('ears',)), dict(size=16), dict(steps=0)):
        with pytest.raises(ValueError): bench(**wrong)
    with pytest.raises(ValueError, match='There is no preset'): bench('scenes-small')
