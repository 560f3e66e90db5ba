// RUN: parse
module {
  func.func @step() -> tensor<?x6xbf16, {tp = "shard(1)"}> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xbf16, {tp = "replicate"}>
    %w = "ts.weight"() {parameters = ["q.{i+1}", "k"], sym = "q+k"} : () -> tensor<6x8xbf16, {tp = "shard(0)"}>
    %y = "ts.linear"(%x, %w) {operandSegmentSizes = array<i32: 1, 1, 0>, label = "attention"} : (tensor<?x8xbf16, {tp = "replicate"}>, tensor<6x8xbf16, {tp = "shard(0)"}>) -> tensor<?x6xbf16, {tp = "shard(1)"}>
    return %y : tensor<?x6xbf16, {tp = "shard(1)"}>
  }
}
// CHECK: func.func @step() -> tensor<?x6xbf16, {tp = "shard(1)"}> {
// CHECK-NEXT: [[X:%[0-9]+]] = "ts.input"() {sym = "x"} : () -> tensor<?x8xbf16, {tp = "replicate"}>
// CHECK-NEXT: [[W:%[0-9]+]] = "ts.weight"() {parameters = ["q.{i+1}", "k"], sym = "q+k"} : () -> tensor<6x8xbf16, {tp = "shard(0)"}>
// CHECK-NEXT: [[Y:%[0-9]+]] = "ts.linear"([[X]], [[W]]) {label = "attention"
// CHECK-SAME: -> tensor<?x6xbf16, {tp = "shard(1)"}>
// CHECK-NEXT: return [[Y]] :
