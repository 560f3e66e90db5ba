// RUN: merge-projections
module {
  func.func @step() -> tensor<?x2xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xf32>
    %kw = "ts.weight"() {parameters = ["a.k.weight"], sym = "a.k.weight"} : () -> tensor<2x8xf32>
    %kb = "ts.weight"() {parameters = ["a.k.bias"], sym = "a.k.bias"} : () -> tensor<2xf32>
    %vw = "ts.weight"() {parameters = ["a.v.weight"], sym = "a.v.weight"} : () -> tensor<2x8xf32>
    %vb = "ts.weight"() {parameters = ["a.v.bias"], sym = "a.v.bias"} : () -> tensor<2xf32>
    %gw = "ts.weight"() {parameters = ["a.g.weight"], sym = "a.g.weight"} : () -> tensor<2x8xf32>
    %k = "ts.linear"(%x, %kw, %kb) {label = "a.k", operandSegmentSizes = array<i32: 1, 1, 1>} : (tensor<?x8xf32>, tensor<2x8xf32>, tensor<2xf32>) -> tensor<?x2xf32>
    // no bias: stays on its own
    %g = "ts.linear"(%x, %gw) {label = "a.g", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xf32>, tensor<2x8xf32>) -> tensor<?x2xf32>
    %v = "ts.linear"(%x, %vw, %vb) {label = "a.v", operandSegmentSizes = array<i32: 1, 1, 1>} : (tensor<?x8xf32>, tensor<2x8xf32>, tensor<2xf32>) -> tensor<?x2xf32>
    %kv = "ts.mul"(%k, %v) : (tensor<?x2xf32>, tensor<?x2xf32>) -> tensor<?x2xf32>
    %out = "ts.add"(%kv, %g) : (tensor<?x2xf32>, tensor<?x2xf32>) -> tensor<?x2xf32>
    return %out : tensor<?x2xf32>
  }
}
// CHECK: [[W:%[0-9]+]] = "ts.weight"() {parameters = ["a.k.weight", "a.v.weight"], sym = "a.k+v.weight"} : () -> tensor<4x8xf32>
// CHECK-NEXT: [[B:%[0-9]+]] = "ts.weight"() {parameters = ["a.k.bias", "a.v.bias"], sym = "a.k+v.bias"} : () -> tensor<4xf32>
// CHECK-NEXT: [[M:%[0-9]+]] = "ts.linear"(%0, [[W]], [[B]])
// CHECK-NEXT: "ts.slice"([[M]]) {label = "a.k", start = 0 : i64}
// CHECK-NEXT: "ts.slice"([[M]]) {label = "a.v", start = 2 : i64}
// CHECK-NEXT: "ts.linear"(%0, %{{[0-9]+}}) {label = "a.g"
// CHECK-NOT: ts.linear
