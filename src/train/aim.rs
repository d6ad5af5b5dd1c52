//! What an autoencoder is trained for, and the defaults that follow from it.

use super::activation::Activation;
use super::fit::Schedule;

/// See the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// Rows like those trained on come back well, others do not: bounded units, a narrow code, an early end.
    Reconstruct,
    /// Noise is taken away: a wide network, trained to the end, since noise makes every epoch new and hides progress for a
    /// while.
    Denoise,
    /// Each row turns few units of a wide code on, which takes a deep encoder to choose them, trained to the end.
    Sparse,
    /// Labels are told by the code of a model that is there: a small head on few rows, trained to the end.
    Classify,
}

/// Widest layer that is chosen by itself.
const WIDEST: usize = 1024;

impl Aim {
    pub(super) fn activation(self) -> Activation {
        match self {
            Self::Reconstruct | Self::Classify => Activation::Tanh,
            Self::Denoise | Self::Sparse => Activation::Relu,
        }
    }

    /// None: as the other layers.
    pub(super) fn code_activation(self) -> Option<Activation> {
        (self == Self::Sparse).then_some(Activation::Sigmoid)
    }

    pub(super) fn learn_rate(self) -> f64 {
        match self {
            Self::Reconstruct | Self::Denoise => 0.001,
            Self::Sparse => 0.003,
            Self::Classify => 0.01,
        }
    }

    pub(super) fn schedule(self) -> Schedule {
        match self {
            Self::Reconstruct | Self::Classify => Schedule::Constant,
            Self::Denoise | Self::Sparse => Schedule::Cosine,
        }
    }

    pub(super) fn patience(self) -> usize {
        match self {
            Self::Reconstruct => 10,
            Self::Denoise | Self::Sparse | Self::Classify => 50,
        }
    }

    /// Epochs at most: a hundred or two, of many rows fewer. More make anomalies of small tables look normal too, long
    /// before early stopping notices.
    pub(super) fn epochs(self, rows: usize) -> usize {
        const ROWS: usize = 2_000_000;
        let most = match self {
            Self::Reconstruct => 100,
            Self::Denoise | Self::Sparse => 200,
            Self::Classify => 500,
        };
        (ROWS / rows.max(1)).clamp(20, most)
    }

    /// Widths of the hidden layers, by that of the rows. To reconstruct, a code as wide as the root of the number of
    /// columns, between two layers as wide as the columns: a wider code reconstructs anomalies of wide tables too, a
    /// narrower one not even the other rows of narrow tables.
    pub(super) fn hidden_units(self, width: usize) -> Vec<usize> {
        let bounded = |width: usize| width.clamp(4, WIDEST);
        match self {
            Self::Reconstruct | Self::Classify => {
                let code = (1..).find(|code| code * code >= width).unwrap_or(1);
                vec![bounded(width), code.clamp(1, bounded(width)), bounded(width)]
            }
            Self::Denoise => [4 * width, 2 * width, 4 * width].map(bounded).to_vec(),
            Self::Sparse => [4 * width, 8 * width, 4 * width].map(bounded).to_vec(),
        }
    }
}

/// Rows of a batch: of few rows, small batches, so that there are steps enough.
pub(super) fn batch(rows: usize) -> usize {
    (rows / 128).next_power_of_two().clamp(32, 256)
}
