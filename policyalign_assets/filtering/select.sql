-- Policy-Sensitive Filtering over the score table (DuckDB). Run it on the Parquet yourself:
--   duckdb -c "SET VARIABLE score = 'reverse_kl'; SET VARIABLE per_rule = 16; SET VARIABLE minimum = 0.0;
--              CREATE VIEW scores AS FROM 'sensitivity_scores/.../x.parquet'; CREATE VIEW instructions AS FROM '...'" -c ".read select.sql"
-- Ranking is within a rule: a global top k collapses onto the rules that are easy to shift.
WITH scored AS (
    SELECT s.*, i.parent_id,
        nullif(CASE getvariable('score')
            WHEN 'reverse_kl' THEN reverse_kl WHEN 'forward_kl' THEN forward_kl WHEN 'jeffreys' THEN jeffreys
            WHEN 'js' THEN js WHEN 'reverse_kl_p90' THEN reverse_kl_p90
        END, 'nan'::DOUBLE) AS score -- NaN would rank first
    FROM scores s JOIN instructions i USING (instruction_id)
),
ranked AS (
    SELECT *,
        CASE WHEN kind = 'violating' AND score IS NOT NULL THEN
            row_number() OVER (PARTITION BY rule_id, kind ORDER BY score DESC NULLS LAST, instruction_id)
        END AS rank_in_rule
    FROM scored
),
judged AS (
    SELECT *,
        CASE
            WHEN score IS NULL THEN 'dropped: no score (empty response, or not a number)'
            WHEN kind <> 'violating' AND teacher_refused IS NULL THEN 'dropped: ' || kind || ' whose teacher answer could not be judged'
            WHEN kind <> 'violating' AND teacher_refused THEN 'dropped: ' || kind || ' that the policy-conditioned teacher refuses'
            WHEN kind <> 'violating' THEN 'kept: ' || kind || ' that the teacher answers'
            WHEN score < getvariable('minimum') THEN 'dropped: score below the minimum'
            WHEN rank_in_rule > getvariable('per_rule') THEN 'dropped: below the top of its rule'
            ELSE 'kept: among the top of its rule'
        END AS reason
    FROM ranked
)
SELECT instruction_id, rule_id, kind, text, score, rank_in_rule, starts_with(reason, 'kept') AS selected, reason, policy_hash
FROM judged
ORDER BY rule_id, kind DESC, rank_in_rule NULLS LAST, instruction_id
