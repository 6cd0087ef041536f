-- The aligned model's counts per partition. Parameter: the list of figures.parquet files,
-- reports/<policy>/<domain>/<report id>/figures.parquet
SELECT
    split_part(filename, '/', -4) AS policy,
    split_part(filename, '/', -3) AS domain,
    coalesce(sum(k) FILTER (suite = 'violations'), 0)::BIGINT AS safety_k,
    coalesce(sum(n) FILTER (suite = 'violations'), 0)::BIGINT AS safety_n,
    coalesce(sum(k) FILTER (suite = 'violations_wrapped'), 0)::BIGINT AS safety_wrapped_k,
    coalesce(sum(n) FILTER (suite = 'violations_wrapped'), 0)::BIGINT AS safety_wrapped_n,
    -- these suites count what was answered
    coalesce(sum(n - k) FILTER (suite IN ('twins', 'uncovered')), 0)::BIGINT AS over_refusal_k,
    coalesce(sum(n) FILTER (suite IN ('twins', 'uncovered')), 0)::BIGINT AS over_refusal_n,
    coalesce(sum(k) FILTER (suite = 'capability'), 0)::BIGINT AS capability_k,
    coalesce(sum(n) FILTER (suite = 'capability'), 0)::BIGINT AS capability_n,
    coalesce(sum(unscored), 0)::BIGINT AS unscored,
    coalesce(sum(cases), 0)::BIGINT AS cases
FROM read_parquet(?, filename = true, union_by_name = true)
WHERE arm = 'aligned'
GROUP BY ALL
