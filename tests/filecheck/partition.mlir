// RUN: partition
module {
  func.func @step() -> tensor<?x6xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xf32>
    %out = "ts.repeat"(%x) ({
    ^bb0(%h: tensor<?x8xf32>):
      %next = "ts.add"(%h, %x) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
      "ts.yield"(%next) {operandSegmentSizes = array<i32: 1>} : (tensor<?x8xf32>) -> ()
    }) {count = 2 : i64, first = 0 : i64, operandSegmentSizes = array<i32: 1>, resultSegmentSizes = array<i32: 1>, stride = 1 : i64} : (tensor<?x8xf32>) -> tensor<?x8xf32>
    %w = "ts.weight"() {parameters = ["w"], sym = "w"} : () -> tensor<6x8xf32>
    %y = "ts.linear"(%out, %w) {operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xf32>, tensor<6x8xf32>) -> tensor<?x6xf32>
    return %y : tensor<?x6xf32>
  }
}
// CHECK: func.func @step() -> tensor<?x6xf32, {tp = "replicate"}>
// CHECK: ^bb0(%arg0: tensor<?x8xf32, {tp = "replicate"}>):
// CHECK-NEXT: "ts.add"
// CHECK-SAME: -> tensor<?x8xf32, {tp = "replicate"}>
// CHECK: "ts.weight"() {{.*}} tensor<6x8xf32, {tp = "replicate"}>
// CHECK: return %{{[0-9]+}} : tensor<?x6xf32, {tp = "replicate"}>
// CHECK-NOT: f32>
