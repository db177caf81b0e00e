//! Tokens for enrolment and for the API; of both only hashes.

use rusqlite::{Row, named_params};
use tickbird_shared::Timestamp;

use super::column::{At, Bytes, Json};
use super::{ApiTokenRow, Rows, StoreError, TokenRow, Transaction, sums};

impl Rows<'_> {
    /// Every enrolment token, oldest first.
    pub fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM tokens ORDER BY created_at, id")?;
        Ok(query.query_map([], read)?.collect::<Result<_, _>>()?)
    }

    /// Every token for the API.
    pub fn api_tokens(&self) -> Result<Vec<ApiTokenRow>, StoreError> {
        let mut query = self.0.prepare_cached("SELECT * FROM api_tokens ORDER BY tenant, name")?;
        Ok(query.query_map([], read_api_token)?.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Keeps a new enrolment token.
    pub fn add_token(&self, token: &TokenRow) -> Result<(), StoreError> {
        self.connection()
            .prepare_cached(
                "INSERT INTO tokens (tenant, id, hash, labels, ephemeral, uses, used, created_at, expires_at, revoked_at) \
                 VALUES (:tenant, :id, :hash, :labels, :ephemeral, :uses, :used, :created_at, :expires_at, :revoked_at)",
            )?
            .execute(named_params! {
                ":tenant": token.tenant,
                ":id": token.id,
                ":hash": Bytes(token.hash),
                ":labels": Json(&token.labels),
                ":ephemeral": token.ephemeral,
                ":uses": token.uses,
                ":used": token.used,
                ":created_at": At(token.created_at),
                ":expires_at": At(token.expires_at),
                ":revoked_at": token.revoked_at.map(At),
            })?;
        Ok(())
    }

    /// Counts one use; false when it is used up, expired or revoked.
    pub fn use_token(&self, tenant: &str, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let changed = self
            .connection()
            .prepare_cached(
                "UPDATE tokens SET used = used + 1 WHERE tenant = ?1 AND id = ?2 AND used < uses \
                 AND expires_at > ?3 AND revoked_at IS NULL",
            )?
            .execute((tenant, id, At(now)))?;
        Ok(changed > 0)
    }

    /// Ends a token; false when there is no such token. Revoking twice keeps the first time.
    pub fn revoke_token(&self, tenant: &str, id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let changed = self
            .connection()
            .prepare_cached("UPDATE tokens SET revoked_at = coalesce(revoked_at, ?3) WHERE tenant = ?1 AND id = ?2")?
            .execute((tenant, id, At(now)))?;
        Ok(changed > 0)
    }

    /// Keeps a token for the API; false when the tenant has one of that name.
    pub fn add_api_token(&self, token: &ApiTokenRow) -> Result<bool, StoreError> {
        let added = self
            .connection()
            .prepare_cached(
                "INSERT OR IGNORE INTO api_tokens (tenant, name, hash, role, created_at) \
                 VALUES (:tenant, :name, :hash, :role, :created_at)",
            )?
            .execute(named_params! {
                ":tenant": token.tenant,
                ":name": token.name,
                ":hash": Bytes(token.hash),
                ":role": token.role,
                ":created_at": At(token.created_at),
            })?;
        Ok(added > 0)
    }

    /// Ends a token for the API, and frees its name; false when the tenant has none of that name.
    pub fn revoke_api_token(&self, tenant: &str, name: &str) -> Result<bool, StoreError> {
        let removed = self
            .connection()
            .prepare_cached("DELETE FROM api_tokens WHERE tenant = ?1 AND name = ?2")?
            .execute((tenant, name))?;
        Ok(removed > 0)
    }
}

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    sums::check("tokens", row)?;
    Ok(TokenRow {
        tenant: row.get("tenant")?,
        id: row.get("id")?,
        hash: row.get::<_, Bytes<32>>("hash")?.0,
        labels: row.get::<_, Json<_>>("labels")?.0,
        ephemeral: row.get("ephemeral")?,
        uses: row.get("uses")?,
        used: row.get("used")?,
        created_at: row.get::<_, At>("created_at")?.0,
        expires_at: row.get::<_, At>("expires_at")?.0,
        revoked_at: row.get::<_, Option<At>>("revoked_at")?.map(|at| at.0),
    })
}

pub(super) fn read_api_token(row: &Row<'_>) -> rusqlite::Result<ApiTokenRow> {
    sums::check("api_tokens", row)?;
    Ok(ApiTokenRow {
        tenant: row.get("tenant")?,
        name: row.get("name")?,
        hash: row.get::<_, Bytes<32>>("hash")?.0,
        role: row.get("role")?,
        created_at: row.get::<_, At>("created_at")?.0,
    })
}
