//! Names of tensors.

use crate::metadata::Role;

/// Common names of tensors, lower case.
pub(super) fn common_names(role: Role) -> &'static [&'static str] {
    match role {
        Role::Code => &[
            "code",
            "codes",
            "latent",
            "latents",
            "embedding",
            "embeddings",
            "z",
            "z_mean",
            "mu",
            "bottleneck",
            "encoded",
            "encoding",
            "encoder_output",
        ],
        Role::Reconstruction => &[
            "reconstruction",
            "reconstructed",
            "recon",
            "recon_x",
            "decoded",
            "decoder_output",
            "output",
            "x_hat",
            "xhat",
            "x_recon",
        ],
        Role::Scaled => &["scaled", "scaled_input"],
        Role::ScaledReconstruction => &["scaled_reconstruction"],
        Role::Logits => &["logits"],
    }
}

/// The name of a tensor without the additions of frameworks: `Dense_3/code:0` becomes `code`.
pub(super) fn plain(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.split(':').next().unwrap_or(name);
    name.to_ascii_lowercase()
}
