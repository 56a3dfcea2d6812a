-- The accounts of tenants in CRMs, by the destination of their rows in crm_sync: such as hubspot:acme. A row here means
-- that all leads of the tenant were added to crm_sync for this account.
CREATE TABLE crm_accounts (
    destination text        PRIMARY KEY,
    tenant      text        NOT NULL,
    opened_at   timestamptz NOT NULL DEFAULT now()
);

-- The last valid content of each tenant file. It holds no secrets.
CREATE TABLE tenant_files (
    tenant   text        PRIMARY KEY,
    content  bytea       NOT NULL,
    valid_at timestamptz NOT NULL DEFAULT now()
);

-- The account that sends a message: the channel, such as email, or that of one tenant, email:acme. '' for messages that
-- were finished before this column existed.
ALTER TABLE messages_sent ADD COLUMN account text NOT NULL DEFAULT '';
UPDATE messages_sent SET account = channel WHERE state IN ('waiting', 'sending');
DROP INDEX messages_due;
CREATE INDEX messages_due ON messages_sent (account, next_attempt_at) WHERE state IN ('waiting', 'sending');

-- What enrichment has cost each tenant that has a budget, by day.
CREATE TABLE enrichment_spend (
    tenant  text             NOT NULL,
    day     date             NOT NULL,
    credits double precision NOT NULL,
    PRIMARY KEY (tenant, day)
);

-- The second wall between tenants: row-level security. The owner of the tables, which the workers log in as, is not
-- limited by it. Every other role sees only the rows of the tenant that leadstream.tenant is set to in its transaction
-- (infra/postgres/pool.py, as_tenant), and no rows if it is not set.
DO $$
BEGIN
    CREATE ROLE leadstream_api NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN -- another database of this server has created it
    NULL;
END $$;
DO $$
BEGIN
    EXECUTE format('GRANT leadstream_api TO %I', current_user);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO leadstream_api', current_schema());
END $$;

-- Protects every table with a column tenant that is not protected yet. A migration that adds such a table calls it.
CREATE FUNCTION protect_tenant_rows() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            AND a.attname = 'tenant' AND NOT a.attisdropped AND NOT c.relrowsecurity
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I USING (tenant = current_setting(''leadstream.tenant'', true)) '
                       'WITH CHECK (tenant = current_setting(''leadstream.tenant'', true))', name);
    END LOOP;
END $$;
SELECT protect_tenant_rows();

-- It has no tenant: its rows are those of the leads that the role sees.
ALTER TABLE lead_aliases ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON lead_aliases USING (EXISTS (SELECT FROM leads WHERE leads.lead_id = lead_aliases.lead_id));

-- Nothing else: receipts have no tenant, and the role writes nothing.
GRANT SELECT ON leads, identities, lead_history, lead_aliases, lead_merges, crm_sync, enrichment_results,
    enrichment_work, messages_sent TO leadstream_api;
