-- The accounts of tenants in CRMs, by the destination of their rows in crm_sync: such as hubspot:acme. A row here means
-- that all leads of the tenant were added to crm_sync for this account.
CREATE TABLE crm_accounts (
    destination text        PRIMARY KEY,
    tenant      text        NOT NULL,
    opened_at   timestamptz NOT NULL DEFAULT now()
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
