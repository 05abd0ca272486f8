"""Every row of every file, whatever its format and types, has what verl and the reward read."""

import copy
import inspect
import json
import re

import pytest
from omegaconf import OmegaConf

from aent_verl.preflight import PreflightError, data, rows
from aent_verl.preflight.rows import LONGEST, SAMPLE
from tests.unit.preflight.rows import row, write

RECORD = {"style": "rule", "ground_truth": "5"}
FORMATS = ["rows.parquet", "rows.jsonl", "rows.json"]


def save(path, rows, *, mark=False):
    """Rows in the format that the path's name says; a JSON array as .json."""
    if path.suffix == ".parquet":
        return write(path, rows)
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n\n"
    path.write_text(text, encoding="utf-8-sig" if mark else "utf-8")
    return str(path)


@pytest.fixture
def verls(settings):
    """Settings with the reward of verl, which cannot do without a ground truth."""
    settings.reward.custom_reward_function.path = None
    return settings


def checked(settings, path, rows, **how):
    settings.data.train_files = save(path, rows, **how)
    return data.check(settings)


def spoilt(position, count=200, **changes):
    rows = [row(f"{index} + 1", str(index + 1), extra_info={"index": index}) for index in range(count)]
    for index in range(count)[position]:
        rows[index] |= copy.deepcopy(changes)
    return rows


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        ({"style": "rule"}, "'reward_model' of {} is {{'"),
        (RECORD | {"ground_truth": None}, "'reward_model' of {} is {{'"),
        (RECORD | {"ground_truth": ""}, "'reward_model' of {} is {{'"),
        (None, "'reward_model' of {} is None"),
    ],
)
@pytest.mark.parametrize(
    ("where", "said"),
    [(slice(130, 131), "row 130"), (slice(1, None, 2), "rows 1, 3, 5, 7, 9 and 95 more")],
)
def test_no_ground_truth_in_some_rows(verls, tmp_path, name, truth, problem, where, said):
    with pytest.raises(PreflightError, match=problem.format(said)):
        checked(verls, tmp_path / name, spoilt(where, reward_model=truth))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "record", [{"style": "rule"}, {"answer": "5"}, {"ground_truth": None}, json.dumps(RECORD), "5", [RECORD]]
)
@pytest.mark.parametrize("own", [False, True])
def test_no_ground_truth_in_any_row(settings, tmp_path, name, record, own):
    if not own:
        settings.reward.custom_reward_function.path = None
    rows = spoilt(slice(None), reward_model=record)
    if own and record == {"ground_truth": None}:
        _, lines = checked(settings, tmp_path / name, rows)
        assert lines[0] == "data.train_files: 200 rows with prompt and data source"
        assert isinstance(lines[1], Warning)
        assert str(lines[1]).startswith("data.train_files: reward_model.ground_truth of rows 0, 1, 2, 3, 4 and 195 ")
        return
    with pytest.raises(PreflightError, match="'reward_model' of rows 0, 1, 2, 3, 4 and 195 more is "):
        checked(settings, tmp_path / name, rows)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt", None),
        ("prompt", []),
        ("prompt", [{"role": "user", "content": None}]),
        ("prompt", [{"role": None, "content": "2 + 3?"}]),
        ("prompt", [{"role": "user", "content": "2 + 3?"}, None]),
        ("data_source", None),
        ("data_source", ""),
        ("agent_name", None),
        ("__rollout_n__", None),
    ],
)
def test_a_row_without_what_verl_reads(verls, tmp_path, name, column, value):
    rows = [{"agent_name": "single_turn_agent", "__rollout_n__": 4} | one for one in spoilt(slice(0))]
    rows[130] |= {column: value}
    with pytest.raises(PreflightError, match=f"'{column}' of row 130 is "):
        checked(verls, tmp_path / name, rows)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "truth",
    [5, 2.5, True, ["5"], {"target": ["5"], "numbers": [1, 2]}, json.dumps({"inputs": ["1"], "outputs": ["2"]})],
)
def test_a_ground_truth_of_any_type(verls, tmp_path, name, truth):
    rows = spoilt(slice(None), reward_model=RECORD | {"ground_truth": truth}, extra_info=None)
    sample, lines = checked(verls, tmp_path / name, rows)
    assert lines[0] == "data.train_files: 200 rows with prompt, data source and ground truth"
    assert sample.rows[0]["reward_model"]["ground_truth"] == truth
    rows[150]["reward_model"] = RECORD | {
        "ground_truth": {"target": None, "numbers": None} if "target" in str(truth) else None
    }
    with pytest.raises(PreflightError, match="'reward_model' of row 150 is"):
        checked(verls, tmp_path / name, rows)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_several_types_in_one_place_as_verl_reads_them(verls, tmp_path, name):
    rows = spoilt(slice(100, None), reward_model={"ground_truth": {"target": ["5"]}}, extra_info={"index": "a"})
    rows[70]["prompt"][0]["content"] = [{"type": "text", "text": "How many?"}]

    def save_and_check():
        if name != "rows.parquet":
            return checked(verls, tmp_path / name, rows)
        import datasets

        datasets.Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(tmp_path / name)
        verls.data.train_files = str(tmp_path / name)
        return data.check(verls)

    sample, lines = save_and_check()
    assert lines[0] == "data.train_files: 200 rows with prompt, data source and ground truth"
    assert rows[70]["prompt"] == sample.rows[64]["prompt"]  # one of those with most text
    rows[120]["reward_model"]["ground_truth"] = None
    rows[121]["reward_model"] = "five"
    with pytest.raises(PreflightError, match="'reward_model' of row 121 is 'five'"):
        save_and_check()
    del rows[121]
    with pytest.raises(PreflightError, match=r"'reward_model' of row 120 is {'ground_truth': None"):
        save_and_check()


def test_types_that_other_writers_use(verls, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(spoilt(slice(130, 131), reward_model=RECORD | {"ground_truth": None}))
    message = pa.struct([("role", pa.large_string()), ("content", pa.large_string())])
    kinds = {"prompt": pa.large_list(message), "data_source": pa.dictionary(pa.int32(), pa.string())}
    for name, kind in kinds.items():
        table = table.set_column(table.column_names.index(name), name, table.column(name).cast(kind))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=50)
    verls.data.train_files = str(tmp_path / "rows.parquet")
    with pytest.raises(PreflightError, match="of row 130 is"):
        data.check(verls)


def test_nan_is_not_a_ground_truth(verls, tmp_path):
    truths = [{"ground_truth": float(index) if index != 7 else float("nan")} for index in range(20)]
    rows = [row(reward_model=truth) for truth in truths]
    with pytest.raises(PreflightError, match="'reward_model' of row 7 is"):
        checked(verls, tmp_path / "rows.parquet", rows)


def test_a_message_that_calls_a_tool_needs_no_text(verls, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    answer = [{"role": "user", "content": "2 + 3?"}, call, {"role": "tool", "content": "5"}]
    checked(verls, tmp_path / "rows.jsonl", spoilt(slice(130, 131), prompt=answer))


def test_a_ground_truth_under_names_that_the_first_rows_do_not_have(verls, tmp_path):
    rows = spoilt(slice(None), reward_model={"ground_truth": {"target": "5"}})
    rows[150]["reward_model"] = {"style": "rule", "ground_truth": {"goal": "5"}}
    checked(verls, tmp_path / "rows.jsonl", rows)


def test_a_reward_that_reads_no_ground_truth_needs_none(settings, tmp_path):
    settings.reward.custom_reward_function.path = None
    settings.reward.reward_model.enable = True
    rows = [{"prompt": one["prompt"]} for one in spoilt(slice(0))]
    assert checked(settings, tmp_path / "rows.parquet", rows)[1][0] == "data.train_files: 200 rows with prompt"
    rows = spoilt(slice(None), reward_model=json.dumps(RECORD))
    with pytest.raises(PreflightError, match="expected a record in every row"):  # validation reads it all the same
        checked(settings, tmp_path / "rows.parquet", rows)
    settings.reward.reward_model.enable = False
    settings.reward.reward_manager.source = "importlib"
    checked(settings, tmp_path / "rows.parquet", spoilt(slice(None), reward_model={"mine": 1}))


def test_an_agent_loop_may_score_without_a_ground_truth(verls, tmp_path):
    OmegaConf.update(verls, "actor_rollout_ref.rollout.agent.agent_loop_config_path", "loops.yaml")
    rows = spoilt(slice(1, None, 2), reward_model=RECORD | {"ground_truth": None})
    assert isinstance(checked(verls, tmp_path / "rows.parquet", rows)[1][1], Warning)


@pytest.mark.parametrize("name", FORMATS)
def test_data_sources_that_begin_late_are_in_the_sample(settings, tmp_path, name):
    sample, _ = checked(settings, tmp_path / name, spoilt(slice(180, None), data_source="other"))
    assert [one["extra_info"]["index"] for one in sample.rows if one["data_source"] == "other"] == [180, 181, 182]


def test_a_late_data_source_is_tried_on_the_reward(verls, tmp_path):
    from aent_verl.preflight import reward

    rows = spoilt(slice(None), data_source="openai/gsm8k")
    rows[190]["data_source"] = "unheard_of"
    sample, _ = checked(verls, tmp_path / "rows.parquet", rows)
    with pytest.raises(PreflightError, match="row of data source 'unheard_of'"):
        reward.check(verls, data.Sample(sample.train))


def test_too_many_data_sources_to_try(settings, tmp_path):
    rows = [row(source=str(index)) for index in range(200)]
    sample, lines = checked(settings, tmp_path / "rows.parquet", rows)
    assert len(sample.train[settings.data.train_files]) <= SAMPLE + LONGEST
    assert "has 200 data sources; the reward is not tried on 136" in str(lines[1])


@pytest.mark.parametrize("name", FORMATS)
def test_the_longest_prompts_are_in_the_sample(settings, tmp_path, name):
    rows = spoilt(slice(0))
    for index in (150, 170):
        rows[index]["prompt"][0]["content"] *= 9
    sample, _ = checked(settings, tmp_path / name, rows)
    assert [one for one in rows[64:] if one in sample.rows][-2:] == [rows[150], rows[170]]


@pytest.mark.parametrize("extra", ['{"index": 0}', ["a"]])
def test_extra_information_that_is_not_a_record(settings, tmp_path, extra):
    with pytest.raises(PreflightError, match="'extra_info' of row 0 is"):
        checked(settings, tmp_path / "rows.parquet", spoilt(slice(None), extra_info=extra))


@pytest.mark.parametrize("name", FORMATS[1:])
def test_a_byte_order_mark(settings, tmp_path, name):
    assert "200 rows" in checked(settings, tmp_path / name, spoilt(slice(0)), mark=True)[1][0]


@pytest.mark.parametrize("column", ["output", "responses", "trace"])
def test_a_column_under_a_name_that_verl_uses_itself(settings, tmp_path, column):
    with pytest.raises(PreflightError, match=f"verl has values named '{column}' itself"):
        checked(settings, tmp_path / "rows.parquet", [one | {column: "x"} for one in spoilt(slice(0))])


def test_the_names_that_verl_uses_itself():
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    worker = AgentLoopWorkerTQ.__ray_metadata__.modified_class
    functions = [AgentLoopWorker._run_agent_loop, worker._agent_loop_postprocess]
    parameters = {name for function in functions for name in inspect.signature(function).parameters}
    everything = AgentLoopOutput(
        prompt_ids=[1], response_ids=[2], response_mask=[1], response_logprobs=[0.0], routed_experts=[[0]],
        reward_score=1.0, num_turns=1, metrics=AgentLoopMetrics(), mm_processor_kwargs={}, mm_processor_output=[],
        extra_fields={"teacher_ids": [1], "teacher_logprobs": [0.0]},
    )  # fmt: skip
    # A data set names the agent of each row; verl itself hands over the session.
    assert {*parameters, *everything.as_dict(), "session_id"} - {
        "agent_name",
        "kwargs",
        "_ray_trace_ctx",
    } == data.RESERVED


@pytest.mark.parametrize("indent", [None, 1])
def test_of_a_large_array_the_first_rows_are_checked_and_the_warning_says_so(settings, tmp_path, monkeypatch, indent):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(spoilt(slice(150, None), reward_model={}), indent=indent))
    settings.data.train_files = str(file)
    settings.data.train_batch_size = 199
    with pytest.raises(PreflightError, match="'reward_model' of rows 150, 151"):
        data.check(settings)
    monkeypatch.setattr(rows, "_ARRAY_BYTES", 1000)
    monkeypatch.setattr(rows, "_BEGINNING", len(file.read_text()) // 2)
    lines = data.check(settings)[1]
    (warning,) = [line for line in lines if isinstance(line, Warning)]
    assert re.search(r"is a JSON array of 0 MiB, of which the first (9\d|1\d\d) rows are checked", str(warning))
    file.write_text(json.dumps(spoilt(slice(3, 4), reward_model={}), indent=indent))
    with pytest.raises(PreflightError, match="'reward_model' of row 3 is"):
        data.check(settings)
