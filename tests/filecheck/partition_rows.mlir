// RUN: partition-rows
module {
  func.func @step() -> tensor<?x4096xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x4096xf32>
    %out = "ts.repeat"(%x) ({
    ^bb0(%h: tensor<?x4096xf32>):
      %n = "ts.weight"() {parameters = ["n"], sym = "n"} : () -> tensor<4096xf32>
      %normed = "ts.rms_norm"(%h, %n) {cast_before_weight = true, eps = 1.0e-05 : f64, label = "norm", one_plus_weight = false} : (tensor<?x4096xf32>, tensor<4096xf32>) -> tensor<?x4096xf32>
      %a = "ts.weight"() {parameters = ["a"], sym = "a"} : () -> tensor<1024x4096xf32>
      %wide = "ts.linear"(%normed, %a) {label = "up", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x4096xf32>, tensor<1024x4096xf32>) -> tensor<?x1024xf32>
      %b = "ts.weight"() {parameters = ["b"], sym = "b"} : () -> tensor<4096x1024xf32>
      %y = "ts.linear"(%wide, %b) {label = "down", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x1024xf32>, tensor<4096x1024xf32>) -> tensor<?x4096xf32>
      %next = "ts.add"(%h, %y) : (tensor<?x4096xf32>, tensor<?x4096xf32>) -> tensor<?x4096xf32>
      "ts.yield"(%next) {operandSegmentSizes = array<i32: 1>} : (tensor<?x4096xf32>) -> ()
    }) {count = 2 : i64, first = 0 : i64, operandSegmentSizes = array<i32: 1>, resultSegmentSizes = array<i32: 1>, stride = 1 : i64} : (tensor<?x4096xf32>) -> tensor<?x4096xf32>
    %last = "ts.weight"() {parameters = ["last"], sym = "last"} : () -> tensor<4096xf32>
    %final = "ts.rms_norm"(%out, %last) {cast_before_weight = true, eps = 1.0e-05 : f64, label = "norm", one_plus_weight = false} : (tensor<?x4096xf32>, tensor<4096xf32>) -> tensor<?x4096xf32>
    return %final : tensor<?x4096xf32>
  }
}
// The residual stream is cut by rows from layer to layer; what is sent is gathered before products and scattered sums behind them.
// CHECK: %[[PART:[0-9]+]] = "ts.take_part"(%{{[0-9]+}}) {axis = "tp", dimension = 0 : i64
// CHECK: "ts.repeat"(%[[PART]])
// CHECK: ^bb0(%arg0: tensor<?x4096xf32, {tp = "shard(0)"}>):
// CHECK: "ts.rms_norm"(%arg0
// CHECK-SAME: -> tensor<?x4096xf32, {tp = "shard(0)"}>
// CHECK: %[[ALL:[0-9]+]] = "ts.all_gather"
// CHECK: "ts.linear"(%[[ALL]]
// CHECK-SAME: -> tensor<?x512xf32, {tp = "shard(1)"}>
// CHECK: "ts.linear"
// CHECK-SAME: -> tensor<?x4096xf32, {tp = "partial"}>
// CHECK-NEXT: "ts.reduce_scatter"
// CHECK-NEXT: "ts.add"(%arg0
// CHECK-SAME: -> tensor<?x4096xf32, {tp = "shard(0)"}>
// CHECK-NEXT: "ts.yield"
// CHECK: "ts.rms_norm"
// CHECK-NEXT: "ts.all_gather"
// CHECK-NEXT: return
// CHECK-NOT: "ts.all_reduce"
