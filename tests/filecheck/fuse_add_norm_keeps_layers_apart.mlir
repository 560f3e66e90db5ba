// RUN: fuse-add-norm
// The norm's weight differs from layer to layer: it must not move to the addition before the repeat.
module {
  func.func @step() -> tensor<?x8xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xf32>
    %sum = "ts.add"(%x, %x) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    %out = "ts.repeat"(%x) ({
    ^bb0(%h: tensor<?x8xf32>):
      %w = "ts.weight"() {parameters = ["n.{i}"], sym = "n.{i}"} : () -> tensor<8xf32>
      %normed = "ts.rms_norm"(%sum, %w) {cast_before_weight = true, eps = 1.0e-6 : f64, one_plus_weight = false} : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?x8xf32>
      %next = "ts.mul"(%h, %normed) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
      "ts.yield"(%next) {operandSegmentSizes = array<i32: 1>} : (tensor<?x8xf32>) -> ()
    }) {count = 2 : i64, first = 0 : i64, operandSegmentSizes = array<i32: 1>, resultSegmentSizes = array<i32: 1>, stride = 1 : i64} : (tensor<?x8xf32>) -> tensor<?x8xf32>
    return %out : tensor<?x8xf32>
  }
}
// CHECK: [[S:%[0-9]+]] = "ts.add"(%0, %0)
// CHECK-NEXT: "ts.repeat"(%0)
// CHECK: [[W:%[0-9]+]] = "ts.weight"() {parameters = ["n.{i}"]
// CHECK-NEXT: "ts.rms_norm"([[S]], [[W]])
// CHECK-NOT: add_rms_norm
