-- Policy-Sensitive Filtering over the score table (DuckDB). To run it on the Parquet files yourself:
--   duckdb -c "SET VARIABLE score = 'reverse_kl'; SET VARIABLE per_rule = 16;
--              SET VARIABLE share = 1.0; SET VARIABLE at_least = 0;
--              SET VARIABLE minimum = 0.0; SET VARIABLE seed = 15;
--              CREATE VIEW scores AS FROM 'sensitivity_scores/.../x.parquet';
--              CREATE VIEW instructions AS FROM '...'" -c ".read select.sql"
-- Ranking is within a rule: a global top k collapses onto the rules that are easy to shift.
-- Of the instructions that break a rule (or call for a duty), the top `share` of the rule is kept,
-- but at least `at_least`, never more than `per_rule`, and none that scores below `minimum`.
-- Held-out instructions take no part. Every instruction leaves with exactly one reason.
WITH scored AS (
    SELECT i.instruction_id, i.rule_id, i.kind, i.text, i.policy_hash,
        s.teacher_refused, s.reverse_kl, s.instruction_id IS NULL AS unscored,
        coalesce(i.split, 'train') AS split, i.kind IN ('violating', 'duty') AS ranked,
        -- Two rules may get the same text, and one of them may hold it out.
        coalesce(bool_or(i.split = 'heldout') OVER (PARTITION BY lower(i.text)), false)
            AS text_heldout,
        nullif(CASE getvariable('score')
            WHEN 'reverse_kl' THEN reverse_kl
            WHEN 'forward_kl' THEN forward_kl
            WHEN 'jeffreys' THEN jeffreys
            WHEN 'js' THEN js
            WHEN 'reverse_kl_p90' THEN reverse_kl_p90
            WHEN 'flip' THEN flip::INT::DOUBLE
            -- A baseline to compare with, the same on every machine.
            WHEN 'random' THEN
                md5_number_lower(i.instruction_id || getvariable('seed')::VARCHAR)
                    / 18446744073709551616.0
        END, 'nan'::DOUBLE) AS score -- NaN would rank first
    FROM instructions i LEFT JOIN scores s USING (instruction_id)
),
ranked AS (
    SELECT *,
        CASE WHEN ranked AND NOT text_heldout AND NOT unscored AND score IS NOT NULL THEN
            row_number() OVER (
                PARTITION BY rule_id, kind, text_heldout, unscored
                ORDER BY score DESC NULLS LAST,
                    nullif(reverse_kl, 'nan'::DOUBLE) DESC NULLS LAST,
                    instruction_id
            )
        END AS rank_in_rule,
        count(score) OVER (PARTITION BY rule_id, kind, text_heldout, unscored) AS scored_in_rule
    FROM scored
),
judged AS (
    SELECT *,
        CASE
            WHEN split = 'heldout' THEN 'held out: never trained on'
            WHEN text_heldout THEN 'dropped: the text of a held-out instruction'
            WHEN unscored THEN 'dropped: not in the table of scores'
            WHEN score IS NULL THEN 'dropped: no score (empty response, or not a number)'
            WHEN NOT ranked AND teacher_refused IS NULL
                THEN 'dropped: ' || kind || ' whose teacher answer could not be judged'
            WHEN NOT ranked AND teacher_refused
                THEN 'dropped: ' || kind || ' that the policy-conditioned teacher refuses'
            WHEN NOT ranked THEN 'kept: ' || kind || ' that the teacher answers'
            WHEN score < getvariable('minimum') THEN 'dropped: score below the minimum'
            WHEN rank_in_rule > getvariable('per_rule') THEN 'dropped: below the top of its rule'
            WHEN rank_in_rule
                    > greatest(ceil(getvariable('share') * scored_in_rule), getvariable('at_least'))
                THEN 'dropped: below the top share of its rule'
            ELSE 'kept: among the top of its rule'
        END AS reason
    FROM ranked
)
SELECT instruction_id, rule_id, kind, text, split, score, rank_in_rule,
    starts_with(reason, 'kept') AS selected, reason, policy_hash
FROM judged
ORDER BY rule_id, kind DESC, rank_in_rule NULLS LAST, instruction_id
