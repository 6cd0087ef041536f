"""The columns of every table that stages hand to each other."""

import pyarrow as pa

YIELDS = (
    b"policyalign.yields"  # schema metadata of INSTRUCTIONS: what became of the drafts, per rule
)
GENERATIONS_INFO = b"policyalign.asked"  # schema metadata of GENERATIONS: see `evaluation.generate.GenerationsInfo`
JUDGEMENTS_INFO = (
    b"policyalign.judged"  # schema metadata of JUDGEMENTS: see `evaluation.judging.JudgementsInfo`
)

INSTRUCTIONS = pa.schema(
    [
        ("instruction_id", pa.string()),  # hash of rule, kind and text
        ("policy_id", pa.string()),
        ("domain", pa.string()),
        ("policy_hash", pa.string()),
        ("rule_id", pa.string()),
        ("rule_hash", pa.string()),
        ("kind", pa.string()),  # violating | duty | twin | neighbour
        (
            "parent_id",
            pa.string(),
        ),  # of a twin, a styled request or a recombined neighbour: the instruction that it was made from
        ("text", pa.string()),
        ("seed", pa.int64()),
        ("round", pa.int32()),
        ("model_id", pa.string()),
        ("model_revision", pa.string()),
        # the cell of the grid; null where the generator knows no grid (the bundled model)
        ("intent", pa.string()),
        ("persona", pa.string()),
        ("format", pa.string()),
        ("difficulty", pa.int8()),
        ("style", pa.string()),  # the attack style put around its parent's text
        (
            "ladder",
            pa.string(),
        ),  # how the generator was brought to write it: plain | defensive | prefill | few_shot
        ("entailed", pa.bool_()),  # true: a judge found that it fits its rule; null: not judged
        (
            "partner_hash",
            pa.string(),
        ),  # of a recombined neighbour: the other rule whose words it uses
        ("cluster", pa.string()),  # requests that are alike; the id of its first member
        ("split", pa.string()),  # train | heldout (by cluster; never trained on)
    ]
)

SENSITIVITY = pa.schema(
    [
        ("instruction_id", pa.string()),
        ("rule_id", pa.string()),
        ("kind", pa.string()),
        ("text", pa.string()),
        ("student_response", pa.string()),  # sampled without the policy
        ("teacher_response", pa.string()),  # sampled with the policy as system message
        ("student_tokens", pa.int32()),
        ("teacher_tokens", pa.int32()),
        ("student_refused", pa.bool_()),  # null where the judge cannot say
        ("teacher_refused", pa.bool_()),
        ("flip", pa.bool_()),  # answered without the policy, refused with it
        ("reverse_kl", pa.float64()),  # nats per token
        ("reverse_kl_p90", pa.float64()),
        ("forward_kl", pa.float64()),
        ("jeffreys", pa.float64()),
        ("js", pa.float64()),
        ("policy_hash", pa.string()),
        ("seed", pa.int64()),
        ("model_id", pa.string()),
        ("model_revision", pa.string()),
    ]
)

FILTERED = pa.schema(
    [
        ("instruction_id", pa.string()),
        ("rule_id", pa.string()),
        ("kind", pa.string()),
        ("text", pa.string()),
        ("split", pa.string()),  # train | heldout
        ("score", pa.float64()),  # the score that ranked it
        (
            "rank_in_rule",
            pa.int64(),
        ),  # among the violating instructions of its rule; null for the other kinds
        ("selected", pa.bool_()),
        ("reason", pa.string()),  # why it was kept or dropped
        ("policy_hash", pa.string()),
    ]
)

TRAINING = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float64()),  # reverse KL over the student's top k, nats per response token
        ("mean_length", pa.float64()),  # response tokens
        ("top_k_mass", pa.float64()),  # Q: the student's probability on its top k
        ("teacher_mass", pa.float64()),  # the teacher's probability on the same tokens
        ("entropy", pa.float64()),  # of the student, over its top k, nats
        ("eos_rate", pa.float64()),  # share of rollouts that ended by themselves
        ("grad_norm", pa.float64()),
        ("seconds", pa.float64()),
        ("tokens_per_second", pa.float64()),
        ("rollout_seconds", pa.float64()),  # the student answers
        ("prefix_seconds", pa.float64()),  # the policy's key/values
        ("teacher_seconds", pa.float64()),  # forward passes
        ("student_seconds", pa.float64()),  # forward, loss and backward
        (
            "engine_mismatch",
            pa.float64(),
        ),  # vLLM's log-probabilities against the trainer's: root mean square, nats; null: no vLLM
    ]
)

# A message of a conversation. `by_model`: the model under test wrote it; other replies were given.
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("by_model", pa.bool_())])
# The messages before the response of that row; null for a single request
CONVERSATION = ("conversation", pa.list_(MESSAGE))

# every answer of every arm; no verdict
GENERATIONS = pa.schema(
    [
        ("case_id", pa.string()),
        ("arm", pa.string()),  # base | base_policy | aligned | aligned_policy
        (
            "suite",
            pa.string(),
        ),  # of held-out cases (evaluation/cases.py); null for public benchmarks
        ("benchmark", pa.string()),  # id in evaluation/benchmarks.yaml; null for held-out cases
        (
            "kind",
            pa.string(),
        ),  # within the suite; of a benchmark's case: harmful | benign | question
        ("rule_id", pa.string()),
        ("wrapped", pa.bool_()),
        ("category", pa.string()),
        ("cluster", pa.string()),  # cases that are variations of each other
        (
            "prompt",
            pa.string(),
        ),  # null where the authors of a benchmark ask that no plain text of it be passed on
        CONVERSATION,
        ("reference", pa.string()),  # the right answer, where there is one
        ("alternatives", pa.list_(pa.string())),  # wrong answers that the question itself offers
        # judge | rule | text | value | likelihood | correctness: see evaluation/judging.py
        ("scoring", pa.string()),
        ("response", pa.string()),  # null where the likelihood of choices was compared
        ("correct", pa.bool_()),  # of choices (lm-eval); null elsewhere: that is for a judgement
        ("unanswered", pa.string()),  # why there is no answer
        ("truncated", pa.bool_()),
        ("empty", pa.bool_()),
        ("tokens", pa.int32()),
        ("policy_hash", pa.string()),
    ]
)

# what a judge says about an answer; null where it does not speak of it
_FINDINGS = [
    ("refused", pa.bool_()),
    ("scored", pa.bool_()),
    ("unscored_reason", pa.string()),
    ("safe", pa.bool_()),
    ("violated_rules", pa.list_(pa.string())),
    ("harm", pa.float64()),  # 0 to 1
    ("helpful_alternative", pa.bool_()),
    ("judge_label", pa.string()),
    ("judge_id", pa.string()),
    ("judge_revision", pa.string()),
    ("judge_template", pa.string()),
]

# one row per row of GENERATIONS, in any order
JUDGEMENTS = pa.schema(
    [
        ("case_id", pa.string()),
        ("arm", pa.string()),
        ("correct", pa.bool_()),  # where the case has a right answer
        *_FINDINGS,
        ("policy_hash", pa.string()),
    ]
)

# answers with their verdicts, as they lie beside a report
_ANSWER = [
    ("response", pa.string()),
    ("correct", pa.bool_()),
    ("truncated", pa.bool_()),
    ("empty", pa.bool_()),
    ("tokens", pa.int32()),
]

EVALUATION = pa.schema(
    [
        ("case_id", pa.string()),
        ("arm", pa.string()),  # base | base_policy | aligned | aligned_policy
        (
            "suite",
            pa.string(),
        ),  # violations | violations_wrapped | twins | uncovered | conformance | conformance_benign | capability
        ("kind", pa.string()),
        ("rule_id", pa.string()),
        ("wrapped", pa.bool_()),
        ("cluster", pa.string()),  # the action that is asked for
        ("prompt", pa.string()),
        CONVERSATION,
        *_ANSWER,
        *_FINDINGS,
    ]
)

BENCHMARKS = pa.schema(
    [
        ("benchmark", pa.string()),  # id in evaluation/benchmarks.yaml
        ("kind", pa.string()),  # harmful | benign | question
        ("case_id", pa.string()),
        ("arm", pa.string()),
        ("category", pa.string()),
        ("cluster", pa.string()),  # cases that are variations of each other
        ("prompt", pa.string()),
        CONVERSATION,
        ("reference", pa.string()),  # the right answer, of questions
        *_ANSWER,
        *_FINDINGS,
    ]
)
