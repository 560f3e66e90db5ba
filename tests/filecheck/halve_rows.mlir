// RUN: partition-columns halve-rows
module {
  func.func @step() -> tensor<?x8xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xf32>
    %out = "ts.repeat"(%x) ({
    ^bb0(%h: tensor<?x8xf32>):
      %a = "ts.weight"() {parameters = ["a"], sym = "a"} : () -> tensor<6x8xf32>
      %wide = "ts.linear"(%h, %a) {label = "up", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xf32>, tensor<6x8xf32>) -> tensor<?x6xf32>
      %b = "ts.weight"() {parameters = ["b"], sym = "b"} : () -> tensor<8x6xf32>
      %y = "ts.linear"(%wide, %b) {label = "down", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x6xf32>, tensor<8x6xf32>) -> tensor<?x8xf32>
      %next = "ts.add"(%h, %y) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
      "ts.yield"(%next) {operandSegmentSizes = array<i32: 1>} : (tensor<?x8xf32>) -> ()
    }) {count = 2 : i64, first = 0 : i64, operandSegmentSizes = array<i32: 1>, resultSegmentSizes = array<i32: 1>, stride = 1 : i64} : (tensor<?x8xf32>) -> tensor<?x8xf32>
    return %out : tensor<?x8xf32>
  }
}
// Each half up to its sum, then the other; the sums are read behind both.
// CHECK: %[[A:[0-9]+]] = "ts.take_rows"(%{{[0-9]+}}) {half = 0 : i64}
// CHECK: %[[B:[0-9]+]] = "ts.take_rows"(%{{[0-9]+}}) {half = 1 : i64}
// CHECK: "ts.repeat"(%[[A]], %[[B]])
// CHECK: "ts.linear"(%arg0
// CHECK-NEXT: "ts.linear"
// CHECK-NEXT: %[[SUM:[0-9]+]] = "ts.all_reduce"
// CHECK-NEXT: "ts.linear"(%arg1
// CHECK-NEXT: "ts.linear"
// CHECK-NEXT: "ts.all_reduce"
// CHECK-NEXT: "ts.add"(%arg0, %[[SUM]])
// CHECK-NEXT: "ts.add"(%arg1
// CHECK-NEXT: "ts.yield"
// CHECK: "ts.join_rows"
// CHECK-NEXT: return
