// RUN: select split-packed
// One weight, read by the embedding as it is and by the head packed: the head gets an instance of its own.
module {
  func.func @step() -> tensor<?x4096xf32> {
    %ids = "ts.input"() {sym = "token_ids"} : () -> tensor<?xi32>
    %t = "ts.weight"() {parameters = ["embed"], sym = "embed"} : () -> tensor<4096x64xf32>
    %x = "ts.embedding"(%ids, %t) : (tensor<?xi32>, tensor<4096x64xf32>) -> tensor<?x64xf32>
    %y = "ts.linear"(%x, %t) {label = "head", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x64xf32>, tensor<4096x64xf32>) -> tensor<?x4096xf32>
    return %y : tensor<?x4096xf32>
  }
}
// CHECK: [[P:%[0-9]+]] = "ts.weight"() {parameters = ["embed"], sym = "embed.packed"}
// CHECK-NEXT: [[T:%[0-9]+]] = "ts.weight"() {parameters = ["embed"], sym = "embed"}
// CHECK-NEXT: [[X:%[0-9]+]] = "ts.embedding"(%0, [[T]]) {kernel = "torch.embedding"}
// CHECK-NEXT: "ts.linear"([[X]], [[P]]) {kernel = "onednn.linear_prepacked"
