// RUN: merge-projections
module {
  func.func @step() -> tensor<?x4xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xf32>
    %qw = "ts.weight"() {parameters = ["a.q.weight"], sym = "a.q.weight"} : () -> tensor<4x8xf32>
    %kw = "ts.weight"() {parameters = ["a.k.weight"], sym = "a.k.weight"} : () -> tensor<2x8xf32>
    %vw = "ts.weight"() {parameters = ["a.v.weight"], sym = "a.v.weight"} : () -> tensor<2x8xf32>
    %q = "ts.linear"(%x, %qw) {label = "a.q", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xf32>, tensor<4x8xf32>) -> tensor<?x4xf32>
    %k = "ts.linear"(%x, %kw) {label = "a.k", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xf32>, tensor<2x8xf32>) -> tensor<?x2xf32>
    %v = "ts.linear"(%x, %vw) {label = "a.v", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x8xf32>, tensor<2x8xf32>) -> tensor<?x2xf32>
    %kv = "ts.mul"(%k, %v) : (tensor<?x2xf32>, tensor<?x2xf32>) -> tensor<?x2xf32>
    // another input: not merged with the others
    %ow = "ts.weight"() {parameters = ["a.o.weight"], sym = "a.o.weight"} : () -> tensor<4x2xf32>
    %o = "ts.linear"(%kv, %ow) {label = "a.o", operandSegmentSizes = array<i32: 1, 1, 0>} : (tensor<?x2xf32>, tensor<4x2xf32>) -> tensor<?x4xf32>
    %out = "ts.add"(%q, %o) : (tensor<?x4xf32>, tensor<?x4xf32>) -> tensor<?x4xf32>
    return %out : tensor<?x4xf32>
  }
}
// CHECK: [[W:%[0-9]+]] = "ts.weight"() {parameters = ["a.q.weight", "a.k.weight", "a.v.weight"], sym = "a.q+k+v.weight"} : () -> tensor<8x8xf32>
// CHECK-NEXT: [[M:%[0-9]+]] = "ts.linear"(%0, [[W]]) {label = "a.q+k+v"
// CHECK-SAME: -> tensor<?x8xf32>
// CHECK-NEXT: [[Q:%[0-9]+]] = "ts.slice"([[M]]) {label = "a.q", start = 0 : i64} : (tensor<?x8xf32>) -> tensor<?x4xf32>
// CHECK-NEXT: [[K:%[0-9]+]] = "ts.slice"([[M]]) {label = "a.k", start = 4 : i64} : (tensor<?x8xf32>) -> tensor<?x2xf32>
// CHECK-NEXT: [[V:%[0-9]+]] = "ts.slice"([[M]]) {label = "a.v", start = 6 : i64} : (tensor<?x8xf32>) -> tensor<?x2xf32>
// CHECK-NEXT: [[KV:%[0-9]+]] = "ts.mul"([[K]], [[V]])
// CHECK-NEXT: [[OW:%[0-9]+]] = "ts.weight"() {parameters = ["a.o.weight"]
// CHECK-NEXT: [[O:%[0-9]+]] = "ts.linear"([[KV]], [[OW]]) {label = "a.o"
// CHECK-NEXT: "ts.add"([[Q]], [[O]])
// CHECK-NOT: ts.linear
