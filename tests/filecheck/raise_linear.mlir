// RUN: raise
// One projection with its residual, as Hugging Face code exports it: [1, tokens, features] becomes [rows, features].
module {
  func.func @step() -> tensor<1x?x8xf32> {
    %ids = "ts.input"() {sym = "token_ids"} : () -> tensor<1x?xi64>
    %t = "ts.weight"() {parameters = ["embed"], sym = "embed"} : () -> tensor<50x8xf32>
    %x = "ts.aten"(%t, %ids) {label = "embed", arguments = "{\"args\": [{\"operand\": 0}, {\"operand\": 1}], \"kwargs\": {}}", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, target = "aten.embedding.default"} : (tensor<50x8xf32>, tensor<1x?xi64>) -> tensor<1x?x8xf32>
    %w = "ts.weight"() {parameters = ["w"], sym = "w"} : () -> tensor<8x8xf32>
    %b = "ts.weight"() {parameters = ["b"], sym = "b"} : () -> tensor<8xf32>
    %y = "ts.aten"(%x, %w, %b) {label = "proj", arguments = "{\"args\": [{\"operand\": 0}, {\"operand\": 1}, {\"operand\": 2}], \"kwargs\": {}}", operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>, target = "aten.linear.default"} : (tensor<1x?x8xf32>, tensor<8x8xf32>, tensor<8xf32>) -> tensor<1x?x8xf32>
    %s = "ts.aten"(%x, %y) {label = "layer", arguments = "{\"args\": [{\"operand\": 0}, {\"operand\": 1}], \"kwargs\": {}}", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, target = "aten.add.Tensor"} : (tensor<1x?x8xf32>, tensor<1x?x8xf32>) -> tensor<1x?x8xf32>
    return %s : tensor<1x?x8xf32>
  }
}
// CHECK-NOT: ts.aten
// CHECK: [[I:%[0-9]+]] = "ts.input"() {sym = "token_ids"} : () -> tensor<?xi32>
// CHECK: [[X:%[0-9]+]] = "ts.embedding"([[I]], {{.*}}) {label = "embed"} : (tensor<?xi32>, tensor<50x8xf32>) -> tensor<?x8xf32>
// CHECK: [[Y:%[0-9]+]] = "ts.linear"([[X]], {{.*}}) {label = "proj", {{.*}}} : (tensor<?x8xf32>, tensor<8x8xf32>, tensor<8xf32>) -> tensor<?x8xf32>
// CHECK-NEXT: [[S:%[0-9]+]] = "ts.add"([[X]], [[Y]]) {label = "layer"}
// CHECK: "ts.gather_rows"([[S]],
// CHECK-NOT: ts.aten
