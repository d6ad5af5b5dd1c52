//! `aefusion doctor`: reports the setup and its problems.

use std::io::{self, Write};
use std::sync::Arc;

use aefusion_udfs::config::AeOptions;
use aefusion_udfs::model::runtime::runtime_info;
use clap::Args;
use datafusion::config::ExtensionOptions;
use datafusion::error::Result;

use super::{Outcome, SessionArgs};
use aefusion_train::Unwatched;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    session: SessionArgs,
}

impl DoctorArgs {
    pub(super) fn run(self) -> Result<Outcome> {
        let session = self.session.open(Arc::new(Unwatched))?;
        let mut out = io::stdout().lock();
        let mut outcome = Outcome::Done;
        writeln!(out, "aefusion      {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "DataFusion    {}", datafusion::DATAFUSION_VERSION)?;
        match runtime_info() {
            Ok(info) => {
                let library = info.library.map_or("linked statically".to_owned(), |path| path.display().to_string());
                writeln!(out, "ONNX Runtime  {library}\n              {}", info.build)?;
                writeln!(out, "devices       {}", info.devices.join(", "))?;
            }
            Err(e) => {
                outcome = Outcome::Failed;
                writeln!(out, "ONNX Runtime  MISSING: {}", aefusion_udfs::message(&e))?;
            }
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        writeln!(out, "CPU           {}, {cores} cores, {}", std::env::consts::ARCH, cpu_features().join(" "))?;
        let count = tokio::runtime::Runtime::new()?.block_on(async {
            let rows = aefusion_udfs::sql::SessionContextExt::ae_sql(session.context(), "SHOW MODELS").await?;
            rows.count().await
        });
        let models = match count {
            Ok(n) => format!("{n} model files"),
            Err(e) => {
                outcome = Outcome::Failed;
                format!("CANNOT BE READ: {}", aefusion_udfs::message(&e))
            }
        };
        writeln!(out, "model store   {}: {models}", session.models().store().location())?;
        writeln!(out, "settings")?;
        let state = session.context().state();
        for entry in AeOptions::of(state.config_options()).entries() {
            writeln!(out, "  {:<24} {}", entry.key, entry.value.unwrap_or_default())?;
        }
        let execution = &state.config_options().execution;
        writeln!(out, "  {:<24} {}", "target_partitions", execution.target_partitions)?;
        writeln!(out, "  {:<24} {}", "batch_size", execution.batch_size)?;
        Ok(outcome)
    }
}

/// Vector instructions that ONNX Runtime can use.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("sse4.1", std::arch::is_x86_feature_detected!("sse4.1")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(target_arch = "aarch64")]
    let features = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let features: [(&str, bool); 0] = [];
    features.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}
