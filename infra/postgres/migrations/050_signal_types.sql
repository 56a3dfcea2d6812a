-- Which event types intake signals on leads.campaign-signals: the union over all consumers. A consumer (campaigns)
-- replaces its own rows whenever what it listens to changes; intake reads them in the transaction of each batch.
CREATE TABLE signal_types (
    consumer   text NOT NULL,
    event_type text NOT NULL,
    PRIMARY KEY (consumer, event_type)
);
