// RUN: fuse-rope-kv-write
module {
  func.func @step() -> tensor<?x4x8xf32> {
    %q = "ts.input"() {sym = "q"} : () -> tensor<?x4x8xf32>
    %k = "ts.input"() {sym = "k"} : () -> tensor<?x2x8xf32>
    %cos = "ts.input"() {sym = "cos"} : () -> tensor<?x8xf32>
    %sin = "ts.input"() {sym = "sin"} : () -> tensor<?x8xf32>
    %sinks = "ts.weight"() {sym = "sinks", parameters = ["sinks"]} : () -> tensor<4xf32>
    %rq = "ts.rope"(%q, %cos, %sin) {interleaved = true} : (tensor<?x4x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x4x8xf32>
    %rk = "ts.rope"(%k, %cos, %sin) {interleaved = true} : (tensor<?x2x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x2x8xf32>
    %a = "ts.attention"(%rq, %rk, %k, %sinks) {label = "attention", layer = "3", operandSegmentSizes = array<i32: 1, 1, 1, 1>, scale = 0.5 : f64, softcap = 30.0 : f64, window = 7 : i64} : (tensor<?x4x8xf32>, tensor<?x2x8xf32>, tensor<?x2x8xf32>, tensor<4xf32>) -> tensor<?x4x8xf32>
    // k is turned by another table than q: not fused
    %rk2 = "ts.rope"(%k, %sin, %cos) {interleaved = true} : (tensor<?x2x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x2x8xf32>
    %b = "ts.attention"(%rq, %rk2, %k) {layer = "4", operandSegmentSizes = array<i32: 1, 1, 1, 0>, scale = 0.5 : f64, softcap = 0.0 : f64, window = 0 : i64} : (tensor<?x4x8xf32>, tensor<?x2x8xf32>, tensor<?x2x8xf32>) -> tensor<?x4x8xf32>
    // q is not turned at all: not fused
    %c = "ts.attention"(%a, %rk, %k) {layer = "5", operandSegmentSizes = array<i32: 1, 1, 1, 0>, scale = 0.5 : f64, softcap = 0.0 : f64, window = 0 : i64} : (tensor<?x4x8xf32>, tensor<?x2x8xf32>, tensor<?x2x8xf32>) -> tensor<?x4x8xf32>
    // k is turned in other pairs than q: not fused
    %rk3 = "ts.rope"(%k, %cos, %sin) {interleaved = false} : (tensor<?x2x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x2x8xf32>
    %d = "ts.attention"(%rq, %rk3, %k) {layer = "6", operandSegmentSizes = array<i32: 1, 1, 1, 0>, scale = 0.5 : f64, softcap = 0.0 : f64, window = 0 : i64} : (tensor<?x4x8xf32>, tensor<?x2x8xf32>, tensor<?x2x8xf32>) -> tensor<?x4x8xf32>
    %bc = "ts.add"(%b, %c) : (tensor<?x4x8xf32>, tensor<?x4x8xf32>) -> tensor<?x4x8xf32>
    %bcd = "ts.add"(%bc, %d) : (tensor<?x4x8xf32>, tensor<?x4x8xf32>) -> tensor<?x4x8xf32>
    return %bcd : tensor<?x4x8xf32>
  }
}
// CHECK: [[S:%[0-9]+]] = "ts.weight"()
// CHECK: [[RQ:%[0-9]+]] = "ts.rope"(%0, %2, %3) {interleaved = true}
// CHECK-NEXT: [[RK:%[0-9]+]] = "ts.rope"(%1, %2, %3) {interleaved = true}
// CHECK-NEXT: [[W:%[0-9]+]] = "ts.rope_kv_write"(%0, %1, %1, %2, %3) {interleaved = true, label = "attention", layer = "3"}
// CHECK-NEXT: [[A:%[0-9]+]] = "ts.cached_attention"([[W]], [[S]]) {kv_heads = 2 : i64, label = "attention", layer = "3", operandSegmentSizes = array<i32: 1, 1>, scale = 5.000000e-01 : f64, softcap = 3.000000e+01 : f64, window = 7 : i64}
// CHECK-NEXT: [[RK2:%[0-9]+]] = "ts.rope"(%1, %3, %2)
// CHECK-NEXT: "ts.attention"([[RQ]], [[RK2]], %1) {layer = "4"
// CHECK-NEXT: "ts.attention"([[A]], [[RK]], %1) {layer = "5"
// CHECK-NEXT: [[RK3:%[0-9]+]] = "ts.rope"(%1, %2, %3) {interleaved = false}
// CHECK-NEXT: "ts.attention"([[RQ]], [[RK3]], %1) {layer = "6"
// CHECK-NOT: rope_kv_write
