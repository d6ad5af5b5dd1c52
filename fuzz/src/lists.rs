//! Operators, names of attributes, and values that break things. Words are separated by spaces.

/// Operators with one input, whose result has the shape of the input.
pub const UNARY: &str = "Abs Atan Ceil Cos Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal \
    Relu Round Selu Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Shrink Celu \
    Acosh";

/// Operators with two inputs.
pub const BINARY: &str = "Add Sub Mul Div Pow Max Min Mean Sum PRelu Mod CumSum";

/// Other operators, of three domains.
pub const OTHERS: &str = "AffineGrid And ArgMax ArgMin Attention AveragePool BatchNormalization Bernoulli BitShift BitwiseAnd \
    BlackmanWindow Cast CastLike CenterCropPad Clip Col2Im Compress Concat Constant ConstantOfShape Conv \
    ConvInteger ConvTranspose DFT DepthToSpace DequantizeLinear Det Dropout DynamicQuantizeLinear Einsum Equal \
    Expand EyeLike Flatten GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalMaxPool Greater \
    GridSample GroupNormalization Hardmax If ImageDecoder InstanceNormalization IsInf IsNaN LRN LSTM \
    LayerNormalization Less LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger MaxPool MaxRoiPool \
    MaxUnpool MeanVarianceNormalization MelWeightMatrix Multinomial NegativeLogLikelihoodLoss NonMaxSuppression \
    NonZero Not OneHot Optional OptionalGetElement Pad QLinearConv QLinearMatMul QuantizeLinear RNN RandomNormal \
    RandomNormalLike RandomUniform RandomUniformLike Range ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax \
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare RegexFullMatch Reshape Resize ReverseSequence \
    RoiAlign RotaryEmbedding STFT Scan ScatterElements ScatterND SequenceAt SequenceConstruct Shape Size Slice \
    SoftmaxCrossEntropyLoss SpaceToDepth Split SplitToSequence Squeeze StringNormalizer TfIdfVectorizer TopK \
    Transpose Trilu Where";

/// Operators of other domains, as "domain::Operator".
pub const FOREIGN: &str = "ai.onnx.ml::ArrayFeatureExtractor ai.onnx.ml::Binarizer ai.onnx.ml::CategoryMapper \
    ai.onnx.ml::FeatureVectorizer ai.onnx.ml::Imputer ai.onnx.ml::LabelEncoder ai.onnx.ml::LinearClassifier \
    ai.onnx.ml::LinearRegressor ai.onnx.ml::Normalizer ai.onnx.ml::OneHotEncoder ai.onnx.ml::SVMRegressor \
    ai.onnx.ml::Scaler ai.onnx.ml::TreeEnsembleRegressor ai.onnx.ml::ZipMap ai.onnx.ml::DictVectorizer \
    com.microsoft::Attention com.microsoft::BiasGelu com.microsoft::BiasSoftmax com.microsoft::CDist \
    com.microsoft::DynamicQuantizeMatMul com.microsoft::DynamicQuantizeLSTM com.microsoft::EPContext \
    com.microsoft::EmbedLayerNormalization com.microsoft::ExpandDims com.microsoft::FastGelu \
    com.microsoft::FusedConv com.microsoft::FusedGemm com.microsoft::FusedMatMul com.microsoft::GatherND \
    com.microsoft::Gelu com.microsoft::Inverse com.microsoft::MatMulIntegerToFloat \
    com.microsoft::MultiHeadAttention com.microsoft::NGramRepeatBlock com.microsoft::NhwcMaxPool \
    com.microsoft::Pad com.microsoft::QAttention com.microsoft::QuickGelu com.microsoft::SkipLayerNormalization \
    com.microsoft::Tokenizer com.microsoft::TransposeMatMul com.microsoft::Trilu com.microsoft::Unique \
    com.microsoft::WordConvEmbedding com.unknown::Custom";

/// Names of attributes.
pub const ATTRIBUTES: &str = "activations allowzero alpha auto_pad axes axis batch_axis beta ceil_mode clip dilations direction epsilon \
    equation exclusive fmod group hidden_size high keepdims kernel_shape largest layout linear_before_reset mode \
    momentum noop_with_empty_axes num_outputs p pads perm ratio reduction reverse seed sorted split strides \
    time_axis to training_mode transA transB upper value scan_input_axes";

/// Whole numbers.
pub const INTS: [i64; 22] = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    4,
    5,
    7,
    8,
    16,
    127,
    -128,
    255,
    65_536,
    1_000_000,
    2_147_483_647,
    -2_147_483_648,
    4_294_967_296,
    i64::MAX,
    i64::MIN,
    -3,
];

/// Numbers.
pub const FLOATS: [f64; 18] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    1e-3,
    1e-30,
    1e-45,
    1e6,
    1e12,
    1e30,
    3.4e38,
    -3.4e38,
    f64::NAN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    1e308,
];

/// Dimensions.
pub const DIMS: [i64; 16] = [0, 1, -1, 2, 3, 4, 5, 8, 16, 17, 64, 1000, 65_536, 1 << 20, 1 << 31, i64::MAX];

/// Names.
pub const NAMES: [&str; 16] = [
    "",
    "x",
    "code",
    "reconstruction",
    "x_hat",
    "scaled",
    "scaled_reconstruction",
    "logits",
    "a b",
    "größe",
    "a\0b",
    "\u{1}\u{1}not-utf-8",
    "aefusion/copy/x",
    "decoder/x",
    "z:0",
    "../../x",
];

/// Texts for attributes.
pub const TEXTS: [&str; 20] = [
    "",
    "linear",
    "nearest",
    "constant",
    "reflect",
    "edge",
    "wrap",
    "SAME_UPPER",
    "VALID",
    "NOTSET",
    "forward",
    "reverse",
    "bidirectional",
    "ij,jk->ik",
    "ij,kj->ij",
    "ij->ji",
    "ij,ij->j",
    "add",
    "\u{ff}\u{0}",
    "Relu",
];

/// Element types, valid and not.
pub const ELEMENTS: [i32; 20] = [1, 1, 1, 11, 10, 6, 7, 9, 2, 3, 5, 4, 12, 13, 8, 16, 14, 17, 23, 99];
