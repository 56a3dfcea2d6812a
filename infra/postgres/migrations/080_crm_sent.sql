-- What each CRM was sent last for a lead: property name -> short keyed hash of its value (sinks/crm/fingerprints.py), no
-- value in clear. Null: unknown, so everything is sent. A lead whose newest version has the same costs no call; a
-- property in it that has no value any more is cleared.
ALTER TABLE crm_sync ADD COLUMN sent jsonb;

-- About last_error: codes and ids, such as the id of the CRM record that conflicts, never a value of the lead.
ALTER TABLE crm_sync ADD COLUMN detail text NOT NULL DEFAULT '';

-- The lead whose CRM record conflicts with this one. When that lead is written or retired, this one is due again.
ALTER TABLE crm_sync ADD COLUMN conflict_lead uuid;
CREATE INDEX crm_sync_conflict ON crm_sync (destination, conflict_lead) WHERE conflict_lead IS NOT NULL;
