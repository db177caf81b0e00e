//! `tickbird-agent run`: the agent until a signal ends it.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Failure;
use crate::agent::{self, Order, Separation};
use crate::config::{Config, Place};

pub(super) async fn run(place: &Place) -> Result<u8, Failure> {
    let config = Config::load(place)?;
    crate::agent::log_to_stderr();
    let separation = super::separate(&config)?;
    if separation.is_whole() {
        tracing::info!("rights are separated: {separation}");
    } else {
        tracing::warn!("this kernel separates rights only in part: {separation}");
    }
    let Separation { reader, .. } = separation;
    let (orders, received) = mpsc::channel(4);
    let cannot_listen = |error: std::io::Error| Failure(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_listen)?;
    let place = place.clone();
    let loader = reader.clone();
    tokio::spawn(async move {
        loop {
            let order = tokio::select! {
                _ = terminate.recv() => Order::Stop,
                _ = interrupt.recv() => Order::Stop,
                _ = hangup.recv() => {
                    let place = place.clone();
                    match loader.look(move || Config::load(&place)).await {
                        Some(Ok(config)) => Order::Reload(Box::new(config)),
                        Some(Err(mistakes)) => {
                            tracing::error!(%mistakes, "configuration not reloaded, the last good one stays");
                            continue;
                        }
                        None => return,
                    }
                }
            };
            if orders.send(order).await.is_err() {
                return;
            }
        }
    });
    agent::run(config, reader, received).await.map_err(|error| Failure::of(&error, error.advice()))?;
    Ok(0)
}
