//! Generates the protobuf types of ONNX from the official schema, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/onnx-ml.proto");
    let descriptors = protox::compile(["onnx-ml.proto"], ["proto"])?;
    prost_build::Config::new()
        .bytes(["."]) // weights are shared with the file's bytes, not copied
        .disable_comments(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
