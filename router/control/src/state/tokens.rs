//! Bearer tokens by name; their secrets are here only as hashes.

use marcato_api::StoreRevision;

use super::{Deed, State, StateResult, TokenRecord, encode, keys};
use crate::store::{Expected, Listing, Txn};

impl State {
    /// A token with its version.
    pub async fn token(&self, name: &str) -> StateResult<Option<(TokenRecord, StoreRevision)>> {
        self.get(&keys::token(name)).await
    }

    /// Every token by name.
    pub async fn tokens(&self) -> StateResult<Vec<TokenRecord>> {
        let found = self.list(Listing::of(keys::TOKENS, usize::MAX)).await?;
        Ok(found.into_iter().map(|(token, _)| token).collect())
    }

    /// Writes a new token. Errors: a conflict when the name is taken.
    pub async fn create_token(&self, token: &TokenRecord, deed: &Deed) -> StateResult<()> {
        let key = keys::token(&token.token.name);
        let txn = Txn::new().check(&key, Expected::Absent).put(&key, encode(token)?);
        self.commit(txn, deed).await.map(drop)
    }

    /// Removes a token that is at this version.
    pub async fn remove_token(&self, name: &str, version: StoreRevision, deed: &Deed) -> StateResult<()> {
        let key = keys::token(name);
        self.commit(Txn::new().check(&key, Expected::Revision(version)).delete(&key), deed).await.map(drop)
    }
}
