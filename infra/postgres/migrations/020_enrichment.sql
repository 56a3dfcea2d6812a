-- What providers answered, so that the same question is not paid for twice. key: SHA-256 of the tenant and the question.
-- result is null where the provider knew nothing. lead_id: whose data it is, so that erasing a lead finds it.
CREATE TABLE enrichment_results (
    provider   text             NOT NULL,
    key        bytea            NOT NULL,
    tenant     text             NOT NULL,
    lead_id    uuid             NOT NULL,
    result     jsonb,
    likelihood double precision,
    cost       double precision NOT NULL,
    fetched_at timestamptz      NOT NULL,
    expires_at timestamptz      NOT NULL,
    PRIMARY KEY (provider, key)
);
CREATE INDEX enrichment_results_lead ON enrichment_results (lead_id);
CREATE INDEX enrichment_results_expiry ON enrichment_results (expires_at);
