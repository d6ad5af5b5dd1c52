//! The purpose of an autoencoder, and the defaults of the options that follow from it.

use crate::activation::Activation;
use crate::fit::Schedule;

/// The purpose of a training; the options `noise`, `l1_reg_activation` and `base_model` decide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reconstruct rows that resemble the training data well, and others badly: bounded units, a narrow code, early
    /// stopping.
    Reconstruct,
    /// Remove noise: a wide network and long patience, because noise changes every epoch and can hide progress.
    Denoise,
    /// Turn few units of a wide code on for each row: a deep encoder that chooses these units, and long patience.
    Sparse,
    /// Predict labels from the code of an existing model: a small head, few rows, long patience.
    Classify,
}

/// Widest layer that a default chooses.
const WIDEST: usize = 1024;

impl Purpose {
    /// `activation_fn`
    pub(crate) fn activation(self) -> Activation {
        match self {
            Self::Reconstruct | Self::Classify => Activation::Tanh,
            Self::Denoise | Self::Sparse => Activation::Relu,
        }
    }

    /// None: the activation of the other layers.
    pub(crate) fn code_activation(self) -> Option<Activation> {
        (self == Self::Sparse).then_some(Activation::Sigmoid)
    }

    /// `learn_rate`
    pub(crate) fn learn_rate(self) -> f64 {
        match self {
            Self::Reconstruct | Self::Denoise => 0.001,
            Self::Sparse => 0.003,
            Self::Classify => 0.01,
        }
    }

    /// `learn_rate_schedule`
    pub(crate) fn schedule(self) -> Schedule {
        match self {
            Self::Reconstruct | Self::Classify => Schedule::Constant,
            Self::Denoise | Self::Sparse => Schedule::Cosine,
        }
    }

    /// `patience`, epochs
    pub(crate) fn patience(self) -> usize {
        match self {
            Self::Reconstruct => 10,
            Self::Denoise | Self::Sparse | Self::Classify => 50,
        }
    }

    /// The largest number of epochs; fewer for many rows. With more epochs, a network also learns the anomalies of a small
    /// table, long before early stopping ends the training.
    pub(crate) fn epochs(self, rows: usize) -> usize {
        const ROWS: usize = 2_000_000;
        let most = match self {
            Self::Reconstruct => 100,
            Self::Denoise | Self::Sparse => 200,
            Self::Classify => 500,
        };
        (ROWS / rows.max(1)).clamp(20, most)
    }

    /// The widths of the hidden layers, for rows of `width` columns in the scaled space.
    ///
    /// To reconstruct, the code is as wide as the square root of the number of columns, between two layers as wide as the
    /// columns. A wider code also reconstructs the anomalies of wide tables. A narrower code fails on normal rows of narrow
    /// tables.
    pub(crate) fn hidden_units(self, width: usize) -> Vec<usize> {
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

/// Rows of a batch. Small tables get small batches, because an epoch needs enough steps.
pub(crate) fn batch_size(rows: usize) -> usize {
    (rows / 128).next_power_of_two().clamp(32, 256)
}
