"""The columns of every table that stages hand to each other."""

import pyarrow as pa

# Keys of schema metadata.
# In INSTRUCTIONS: for each rule, how many drafts were kept, and why the others were dropped.
YIELDS = b"policyalign.yields"
# In GENERATIONS: see `evaluation.generate.GenerationsInfo`.
GENERATIONS_INFO = b"policyalign.asked"
# In JUDGEMENTS: see `evaluation.judging.JudgementsInfo`.
JUDGEMENTS_INFO = b"policyalign.judged"

INSTRUCTIONS = pa.schema(
    [
        ("instruction_id", pa.string()),  # hash of rule, kind and text
        ("policy_id", pa.string()),
        ("domain", pa.string()),
        ("policy_hash", pa.string()),
        ("rule_id", pa.string()),
        ("rule_hash", pa.string()),
        ("kind", pa.string()),  # violating | duty | twin | neighbour
        # for a twin, a styled request or a recombined neighbour: the instruction it was made from
        ("parent_id", pa.string()),
        ("text", pa.string()),
        ("seed", pa.int64()),
        ("round", pa.int32()),
        ("model_id", pa.string()),  # of the generator; "author" if the policy's author wrote it
        ("model_revision", pa.string()),
        # the cell of the grid; null if the generator uses no grid (the bundled model), or no
        # generator wrote the request
        ("intent", pa.string()),
        ("persona", pa.string()),
        ("format", pa.string()),
        ("difficulty", pa.int8()),
        ("style", pa.string()),  # the attack style in which its parent's text is wrapped
        # how the generator was prompted to write it: plain | defensive | prefill | few_shot
        ("ladder", pa.string()),
        ("entailed", pa.bool_()),  # true: a judge confirmed that it fits its rule; null: not judged
        # for a recombined neighbour: the other rule whose words it uses
        ("partner_hash", pa.string()),
        ("cluster", pa.string()),  # near-duplicate requests; the id of the cluster's first member
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
        ("student_refused", pa.bool_()),  # null if the judge cannot tell
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
        ("score", pa.float64()),  # the score by which it was ranked
        # rank among the violating instructions of its rule; null for the other kinds
        ("rank_in_rule", pa.int64()),
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
        ("top_k_mass", pa.float64()),  # Q: the student's total probability on its top k tokens
        ("teacher_mass", pa.float64()),  # the teacher's total probability on the same tokens
        ("entropy", pa.float64()),  # of the student, over its top k tokens, in nats
        ("eos_rate", pa.float64()),  # share of rollouts that ended with the end token
        ("grad_norm", pa.float64()),
        ("seconds", pa.float64()),
        ("tokens_per_second", pa.float64()),
        ("rollout_seconds", pa.float64()),  # the student's sampling
        ("prefix_seconds", pa.float64()),  # computing the policy's keys and values
        ("teacher_seconds", pa.float64()),  # the teacher's forward passes
        ("student_seconds", pa.float64()),  # the student's forward pass, loss and backward pass
        # root mean square difference of vLLM's and the trainer's log-probabilities, in nats; null
        # without vLLM
        ("engine_mismatch", pa.float64()),
    ]
)

# A message of a conversation. `by_model` is true if the model under test wrote it; other replies
# are part of the test case.
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("by_model", pa.bool_())])
# The messages before the row's response; null for a single request.
CONVERSATION = ("conversation", pa.list_(MESSAGE))

# Every answer of every arm, without verdicts.
GENERATIONS = pa.schema(
    [
        ("case_id", pa.string()),
        ("arm", pa.string()),  # base | base_policy | aligned | aligned_policy
        # suite of a held-out case (evaluation/cases.py); null for public benchmarks
        ("suite", pa.string()),
        ("benchmark", pa.string()),  # id in evaluation/benchmarks.yaml; null for held-out cases
        # kind within the suite; for a benchmark's case: harmful | benign | question
        ("kind", pa.string()),
        ("rule_id", pa.string()),
        ("wrapped", pa.bool_()),
        ("category", pa.string()),
        ("cluster", pa.string()),  # cases that are variations of each other
        # null if the authors of a benchmark ask that its plain text not be passed on
        ("prompt", pa.string()),
        CONVERSATION,
        ("reference", pa.string()),  # the right answer, if there is one
        ("alternatives", pa.list_(pa.string())),  # wrong answers that the question itself offers
        # judge | rule | text | value | likelihood | correctness: see evaluation/judging.py
        ("scoring", pa.string()),
        ("response", pa.string()),  # null if the likelihoods of choices were compared
        ("correct", pa.bool_()),  # for multiple choice (lm-eval); otherwise null: a judge decides
        ("unanswered", pa.string()),  # why there is no answer
        ("truncated", pa.bool_()),
        ("empty", pa.bool_()),
        ("tokens", pa.int32()),
        ("policy_hash", pa.string()),
    ]
)

# What a judge says about an answer; null if it says nothing about that property.
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

# One row per row of GENERATIONS, in any order.
JUDGEMENTS = pa.schema(
    [
        ("case_id", pa.string()),
        ("arm", pa.string()),
        ("correct", pa.bool_()),  # null if the case has no right answer
        *_FINDINGS,
        ("policy_hash", pa.string()),
    ]
)

# Answers with their verdicts, as they are stored beside a report.
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
        # violations | violations_wrapped | twins | uncovered | conformance | conformance_benign |
        # capability
        ("suite", pa.string()),
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
        ("reference", pa.string()),  # the right answer of a question
        *_ANSWER,
        *_FINDINGS,
    ]
)
